"""Which layer does quantization harm? Each convolution is given back its floating-point self, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Vectors = NDArray[np.float32]
Embed = Callable[[bytes], Vectors]
"""Float32 [n, dim], unit length: a model's embeddings of some fixed pictures."""


def layer_gains(
    original: onnx.ModelProto,
    quantized: onnx.ModelProto,
    embed: Embed,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """By convolution, the mean cosine to full precision that comes back when it alone is not quantized.

    Args:
        original: in full precision; its convolutions have the quantized model's names.
        quantized: with explicit Q/DQ nodes.
        embed: on the session that ships.
        advance: called once per convolution.
    """
    reference = embed(original.SerializeToString())
    loss = _loss(embed(quantized.SerializeToString()), reference)
    gains = {}
    for name in [node.name for node in quantized.graph.node if node.op_type == "Conv"]:
        gains[name] = loss - _loss(embed(in_float(original, quantized, name).SerializeToString()), reference)
        advance()
    return gains


def in_float(original: onnx.ModelProto, quantized: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The quantized model with one convolution that reads floats and holds its original weights."""
    model = onnx.load_model_from_string(quantized.SerializeToString())
    makers = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == name)
    source = next(node for node in original.graph.node if node.name == name)
    constants = {tensor.name: tensor for tensor in original.graph.initializer}
    dequantize = makers.get(node.input[0])
    if dequantize is not None and dequantize.input[0] in makers:  # not where the graph starts on bytes
        node.input[0] = makers[dequantize.input[0]].input[0]
    for place, weight in enumerate(source.input[1:], 1):
        if weight in constants:
            array = numpy_helper.to_array(constants[weight])
            model.graph.initializer.append(numpy_helper.from_array(array, f"{name}/float/{place}"))
            node.input[place] = f"{name}/float/{place}"
    return model


def _loss(found: Vectors, reference: Vectors) -> float:
    return 1.0 - float((found * reference).sum(1).mean())
