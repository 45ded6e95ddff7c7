"""Ways to choose activation ranges, and which of the models that they give is the nearest to the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edge_ravlm.errors import DataError

Calibration = Literal["minmax", "percentile", "entropy"]

CALIBRATIONS: Mapping[str, tuple[Calibration, ...]] = MappingProxyType(
    {"cpu-u8": ("minmax", "percentile", "entropy"), "trt-s8": ("minmax", "entropy")}
)
"""What each flavour's library offers."""

Judge = Callable[[onnx.ModelProto], float]
"""How good a candidate is; the highest wins."""

JUDGED = 32
"""Calibration images that candidates are compared on."""


def calibrations(flavor: str, wanted: str) -> tuple[Calibration, ...]:
    """What to try for a recipe's ``calibration``: one, or all for ``best``.

    Raises:
        DataError: the flavour's library does not have it.
    """
    offered = CALIBRATIONS[flavor]
    found = offered if wanted == "best" else tuple(name for name in offered if name == wanted)
    if not found:
        raise DataError(
            f"quantize.calibration for {flavor}",
            expected=f"one of best, {', '.join(offered)}",
            got=f"'{wanted}'",
            do="correct it in the recipe",
        )
    return found


def closeness(model: onnx.ModelProto, images: Sequence[NDArray[np.uint8]], *, optimize: bool) -> Judge:
    """A judge: the mean cosine of the embeddings to those in full precision.

    Args:
        model: the FP32 graph.
        images: uint8 [1, h, w, 3] each.
        optimize: run candidates through ONNX Runtime's graph optimizations, as the flavour's session does.
    """
    wanted = _embed(model, images, optimize)
    return lambda candidate: float((_embed(candidate, images, optimize) * wanted).sum(1).mean())


def paced(advance: Callable[[], object], wanted: int, given: int) -> Callable[[], None]:
    """Something to call ``given`` times as often as ``advance`` is to be called ``wanted`` times."""
    calls = 0

    def step() -> None:
        nonlocal calls
        calls += 1
        if calls * wanted // given > (calls - 1) * wanted // given:
            advance()

    return step


def _embed(model: onnx.ModelProto, images: Sequence[NDArray[np.uint8]], optimize: bool) -> NDArray[np.float32]:
    """Unit-length embeddings in ONNX Runtime."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1  # the same sums in the same order, so that exports repeat byte for byte
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.concatenate([session.run(["embedding"], {"image": image})[0] for image in images])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
