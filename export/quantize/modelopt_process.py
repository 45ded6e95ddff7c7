"""The process in which NVIDIA ModelOpt runs: ``python -m edge_ravlm.export.quantize.modelopt_process FOLDER REQUEST``.

It reads ``model.onnx`` and ``images.npy`` in the folder, writes ``CALIBRATION.onnx`` for each one wanted beside them
and prints a line per image and pass. Nothing of ModelOpt is imported before ``main`` runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

METHODS = {"entropy": "entropy", "minmax": "max"}
"""ModelOpt's names; symmetric as it is, min-max and the largest value are one."""

OPSET = 19
"""The first in which scales may be FP16; TensorRT 10.3 knows up to 20."""


class Request(msgspec.Struct, frozen=True):
    """How to calibrate, and what to leave in floating point, by node name.

    Attributes:
        calibrations: names in METHODS.
        keep_half: in FP16.
        keep_single: in FP32.
    """

    calibrations: list[str]
    keep_half: list[str]
    keep_single: list[str]

    def encode(self) -> str:
        """As a command line's argument."""
        return msgspec.json.encode(self).decode()


class _Images:
    """Calibration data as ModelOpt wants it.

    Args:
        images: uint8 [n, 1, h, w, 3].
        step: called for each image that is read.
    """

    def __init__(self, images: NDArray[np.uint8], step: Callable[[], object]) -> None:
        self._images, self._step = images, step
        self._wanted = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next feed, or None after the last."""
        image = next(self._wanted, None)
        if image is None:
            return None
        self._step()
        return {"image": image}

    def get_first(self) -> dict[str, NDArray[np.uint8]]:
        """The first feed, which ModelOpt looks at to know the shapes."""
        return {"image": self._images[0]}

    def rewind(self) -> None:
        """Start again."""
        self._wanted = iter(self._images)


def main(folder: Path, request: Request, step: Callable[[], object]) -> None:
    """Quantize with each calibration."""
    from edge_ravlm.export.quantize.moments import convolutions, second_moments  # noqa: PLC0415
    from edge_ravlm.export.quantize.trt_s8 import round_weights  # noqa: PLC0415  # it imports this module

    model, images = onnx.load(folder / "model.onnx"), np.load(folder / "images.npy")
    moments = second_moments(model, list(images), step)
    originals = convolutions(model.graph)
    for name in request.calibrations:
        placed = _with_nodes(folder, METHODS[name], request, _Images(images, step))
        round_weights(placed.graph, originals, moments)
        onnx.save(_in_half(folder, placed, request), folder / f"{name}.onnx")


def _with_nodes(folder: Path, method: str, request: Request, images: _Images) -> onnx.ModelProto:
    """ModelOpt's Q/DQ nodes in an FP32 graph."""
    from modelopt.onnx.quantization import quantize  # noqa: PLC0415

    quantize(
        str(folder / "model.onnx"),
        calibration_method=method,
        calibration_data_reader=images,
        calibration_eps=["cpu"],
        nodes_to_exclude=_patterns(request.keep_half + request.keep_single),
        output_path=str(folder / "placed.onnx"),
        high_precision_dtype="fp32",
        opset=OPSET,
        log_level="ERROR",
    )
    return onnx.load(folder / "placed.onnx")


def _in_half(folder: Path, model: onnx.ModelProto, request: Request) -> onnx.ModelProto:
    """The same with FP16 for FP32, but for what has to stay."""
    from modelopt.onnx.autocast import convert_to_mixed_precision  # noqa: PLC0415

    onnx.save(model, folder / "rounded.onnx")
    narrowed: Any = convert_to_mixed_precision(
        str(folder / "rounded.onnx"),
        nodes_to_exclude=_patterns(request.keep_single),
        data_max=np.inf,  # no reference run: what overflows shows in the judges' cosine
        init_max=np.inf,
        keep_io_types=True,
        opset=OPSET,
    )
    onnx.checker.check_model(narrowed, full_check=True)
    result: onnx.ModelProto = narrowed
    return result


def _patterns(names: list[str]) -> list[str]:
    return [f"{re.escape(name)}$" for name in names]


if __name__ == "__main__":
    steps, sys.stdout = sys.stdout, sys.stderr  # ModelOpt logs to what is stdout when it is imported
    main(
        Path(sys.argv[1]),
        msgspec.json.decode(sys.argv[2], type=Request),
        lambda: print(file=steps, flush=True),  # this is the process's answer
    )
