"""Flavour ``cpu-u8``: static QDQ for ONNX Runtime's CPU kernels – uint8 activations, int8 weights per channel.

Symmetric int8 activations are slower than FP32 on x86; uint8 ones reach ONNX Runtime's fast integer kernels. Its own
quantizer chooses the activation ranges and places the nodes; the weights are rounded here (``weights.py``), because
plain 8-bit ones saturate on CPUs without VNNI.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_ravlm.export.onnx_graph import prune
from edge_ravlm.export.quantize.candidates import JUDGED, Calibration, closeness, paced
from edge_ravlm.export.quantize.keep_float import check_layers, shield
from edge_ravlm.export.quantize.moments import Convolution, convolutions, second_moments
from edge_ravlm.export.quantize.weights import pair_safe_scales, round_for_inputs, symmetric_scales
from edge_ravlm.export.students.image import MEAN, STD

_QUANTIZED = "_quantized"
_METHODS: dict[Calibration, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_BIAS_LIMIT = 2.0**30
"""Largest quantized bias: sums of products must still fit beside it in 32 bits."""


def quantize(
    model: onnx.ModelProto,
    images: Sequence[NDArray[np.uint8]],
    advance: Callable[[], object] = lambda: None,
    *,
    keep_float: Collection[str] = (),
    calibrations: Sequence[Calibration] = ("minmax",),
) -> onnx.ModelProto:
    """Quantize the convolutions; pooling, whitening and normalisation stay in FP32.

    Args:
        model: FP32 graph with the input ``image``, uint8 [n, h, w, 3].
        images: calibration inputs, uint8 [1, h, w, 3] each.
        advance: called twice per calibration image.
        keep_float: names of convolutions that stay in FP32.
        calibrations: ways to choose the ranges of activations; of several the one nearest to ``model`` is kept.

    Raises:
        DataError: ``keep_float`` has a name that no convolution has.
    """
    check_layers(model, keep_float)
    step = paced(advance, 2, 1 + len(calibrations))
    with tempfile.TemporaryDirectory() as folder:
        plain, ready = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready"))
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        prepared = onnx.load(ready)
        placed = [_with_nodes(ready, images, step, keep_float, _METHODS[name]) for name in calibrations]
    originals, moments = convolutions(prepared.graph), second_moments(prepared, images, step)
    for candidate in placed:
        start_on_bytes(candidate.graph)  # first: the scales of biases follow from those of inputs
        round_weights(candidate.graph, originals, moments)
        shield(candidate.graph, keep_float)
        for entry in [entry for entry in candidate.opset_import if entry.domain]:  # ONNX Runtime lists its own, unused
            candidate.opset_import.remove(entry)
    if len(placed) == 1:
        return placed[0]
    return max(placed, key=closeness(model, images[:JUDGED], optimize=True))


def _with_nodes(
    ready: str,
    images: Sequence[NDArray[np.uint8]],
    step: Callable[[], object],
    keep_float: Collection[str],
    method: CalibrationMethod,
) -> onnx.ModelProto:
    """ONNX Runtime's Q/DQ nodes in the FP32 graph of a file."""
    with tempfile.TemporaryDirectory() as folder:
        quantized = str(Path(folder) / "quantized.onnx")
        with redirect_stdout(io.StringIO()):  # "percentile" and "entropy" print what they are at
            quantize_static(
                ready,
                quantized,
                _Reader(images, step),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=method,
                nodes_to_exclude=list(keep_float),
                op_types_to_quantize=["Conv", "Clip", "Relu", "Add"],
                extra_options={"CalibStridedMinMax": 1},  # one image's tensors in memory at a time
            )
        return onnx.load(quantized)


def round_weights(
    graph: onnx.GraphProto, originals: Sequence[Convolution], moments: dict[str, NDArray[np.float64]]
) -> None:
    """Replace the quantized weights and biases of every convolution by ones that cannot saturate.

    Args:
        graph: of ``quantize_static``; changed in place.
        originals: the FP32 graph's convolutions.
        moments: second moments of their inputs, by weight name.
    """
    nodes = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    by_weight = {original.weight_name: original for original in originals}
    for node in [n for n in graph.node if n.op_type == "Conv" and n.input[1] in nodes]:
        activation, weight, bias = (nodes[name] for name in node.input)
        original = by_weight[weight.input[0].removesuffix(_QUANTIZED)]
        step = float(numpy_helper.to_array(tensors[activation.input[1]]))
        rounded, scales, corrected = rounded_weights(original, moments[original.weight_name], step)
        bias_scales = scales * np.float32(step)
        _replace(tensors, weight, original.from_rows(rounded), scales)
        _replace(tensors, bias, np.rint(corrected / bias_scales.astype(np.float64)).astype(np.int32), bias_scales)


def rounded_weights(
    convolution: Convolution, moments: NDArray[np.float64], step: float
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float64]]:
    """Int8 [outputs, inputs], float32 scales [outputs] and float64 biases [outputs] of one convolution.

    Args:
        convolution: the FP32 one.
        moments: second moments of its inputs.
        step: scale of its quantized input, which its bias shares.
    """
    rows, depthwise = convolution.rows, convolution.is_depthwise
    # Depthwise kernels widen to 16 bits before they multiply, and add in 32: they cannot saturate.
    scales = symmetric_scales(rows) if depthwise else pair_safe_scales(rows)
    scales = np.maximum(scales, np.abs(convolution.bias) / np.float32(step * _BIAS_LIMIT))
    scales = np.maximum(scales, np.float32(1e-10))  # a channel without weights
    rounded, bias = round_for_inputs(rows, convolution.bias, scales, moments, paired=not depthwise)
    return rounded, scales, bias


class _Reader(CalibrationDataReader):
    def __init__(self, images: Sequence[NDArray[np.uint8]], advance: Callable[[], object]) -> None:
        self._images, self._advance = images, advance
        self._wanted = iter(images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._wanted = iter(self._images[start_index:end_index])

    def get_next(self) -> Any:  # ONNX Runtime's base class says dict, and means dict or None
        image = next(self._wanted, None)
        if image is None:
            return None
        self._advance()
        return {"image": image}


def _replace(
    tensors: dict[str, onnx.TensorProto],
    dequantize: onnx.NodeProto,
    values: NDArray[np.int8] | NDArray[np.int32],
    scales: NDArray[np.float32],
) -> None:
    """New constants for a DequantizeLinear node; its zero points are zero already."""
    for name, array in zip(dequantize.input[:2], (values, scales), strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))


def start_on_bytes(graph: onnx.GraphProto) -> None:
    """Let the graph start on the camera's bytes: (pixel - 127) / 128 *is* a uint8 tensor of scale 1/128, zero 127.

    Replaces Cast → Sub → Div → QuantizeLinear by nothing, exactly. A first convolution that stays in floating point
    keeps them.
    """
    makers = {output: node for node in graph.node for output in node.output}
    first = next(node for node in graph.node if node.op_type == "Conv")
    dequantize = makers[first.input[0]]
    if dequantize.op_type != "DequantizeLinear":
        return
    cast = dequantize
    while cast.op_type != "Cast":
        cast = makers[cast.input[0]]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / STD, np.float32), "pixel_scale"),
            numpy_helper.from_array(np.array(int(MEAN), np.uint8), "pixel_zero"),
        ]
    )
    dequantize.input[:] = [cast.input[0], "pixel_scale", "pixel_zero"]
    prune(graph)
