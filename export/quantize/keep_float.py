"""Convolutions that stay in floating point inside a quantized graph."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from edge_ravlm.errors import DataError
from edge_ravlm.export.onnx_graph import prune


def check_layers(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Refuse names that no convolution has, such as those of a recipe that was written for another student.

    Raises:
        DataError: with one of them.
    """
    known = [node.name for node in model.graph.node if node.op_type == "Conv"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"layer '{unknown[0]}'",
            expected=f"a convolution's name, such as '{known[0]}' or '{known[-1]}'",
            got="no such layer",
            do="correct quantize.keep_float in the recipe",
        )


def in_float(original: onnx.ModelProto, quantized: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The quantized model with the original weights and bias in one convolution, as ``keep_float`` leaves it."""
    model = onnx.load_model_from_string(quantized.SerializeToString())
    makers = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == name)
    source = next(node for node in original.graph.node if node.name == name)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in original.graph.initializer}
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kind = scales[makers[node.input[1]].input[1]].dtype  # float16 where the rest of the graph is
    for place, weight in enumerate(source.input[1:], 1):
        node.input[place] = f"{name}/float/{place}"
        model.graph.initializer.append(numpy_helper.from_array(constants[weight].astype(kind), node.input[place]))
    dequantize = makers[node.input[0]]
    if scales[dequantize.input[2]].dtype == np.int8:  # uint8 activations are quantized by their maker, whoever reads
        node.input[0] = makers[dequantize.input[0]].input[0]
    shield(model.graph, [name])
    return model


def shield(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Keep ONNX Runtime from quantizing these convolutions where they read dequantized values.

    Its optimizer rounds such weights by itself, with one scale for all channels (``WeightBiasQuantization``; on the
    starter one layer so treated cost more cosine than all others together), unless the bias is no constant. So the
    bias is given as int32, with a scale so fine that nothing is lost.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in [node for node in graph.node if node.op_type == "Conv" and node.name in names]:
        if node.input[0] not in dequantized:
            continue
        bias = numpy_helper.to_array(constants[node.input[2]]).astype(np.float64)
        scale = np.float32(max(np.abs(bias).max(), 1e-30) / 2**30)
        parts = [f"{node.name}/bias/{part}" for part in ("int32", "scale", "float")]
        values = np.rint(bias / scale).astype(np.int32), np.asarray(scale)
        graph.initializer.extend(map(numpy_helper.from_array, values, parts[:2]))
        graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", parts[:2], parts[2:]))
        node.input[2] = parts[2]
    prune(graph)
