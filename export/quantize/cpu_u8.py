"""Flavour ``cpu-u8``: static QDQ for ONNX Runtime's CPU kernels – uint8 activations, int8 weights per channel.

Symmetric int8 activations are slower than FP32 on x86; uint8 ones reach ONNX Runtime's fast integer kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_ravlm.export.teachers.efficientnet import MEAN, STD


def quantize(
    model: onnx.ModelProto,
    images: Iterable[NDArray[np.uint8]],
    *,
    reduce_range: bool,
    advance: Callable[[], object] = lambda: None,
) -> onnx.ModelProto:
    """Quantize the convolutions; pooling, whitening and normalisation stay in FP32.

    Args:
        model: FP32 graph with the input ``image``, uint8 [n, h, w, 3].
        images: calibration inputs.
        reduce_range: 7-bit weights. Needed where the CPU has no VNNI: its 16-bit accumulators saturate otherwise.
        advance: called once per calibration image.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, quantized = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "quantized"))
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            quantized,
            _Reader(images, advance),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["Conv", "Clip", "Add"],
        )
        result = onnx.load(quantized)
    start_on_bytes(result.graph)
    return result


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    def __init__(self, images: Iterable[NDArray[np.uint8]], advance: Callable[[], object]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(images)
        self._advance = advance

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        self._advance()
        return None if image is None else {"image": image}


def start_on_bytes(graph: onnx.GraphProto) -> None:
    """Let the graph start on the camera's bytes: (pixel - 127) / 128 *is* a uint8 tensor of scale 1/128, zero 127.

    Replaces Cast → Sub → Div → QuantizeLinear by nothing, exactly.
    """
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    cast = next(node for node in graph.node if node.op_type == "Cast")
    dequantize = next(node for node in graph.node if node.input[:1] == first.output[:1])
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / STD, np.float32), "pixel_scale"),
            numpy_helper.from_array(np.array(int(MEAN), np.uint8), "pixel_zero"),
        ]
    )
    dequantize.input[:] = [cast.input[0], "pixel_scale", "pixel_zero"]
    prune(graph)


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs any more."""
    needed = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for tensor in [t for t in graph.initializer if t.name not in needed]:
        graph.initializer.remove(tensor)
