"""Which layer does quantization harm? Each convolution is given back its floating-point self, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from edge_ravlm.export.quantize.keep_float import in_float

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
    constants = {tensor.name for tensor in quantized.graph.initializer}
    gains = {}
    for name in [n.name for n in quantized.graph.node if n.op_type == "Conv" and n.input[1] not in constants]:
        gains[name] = loss - _loss(embed(in_float(original, quantized, name).SerializeToString()), reference)
        advance()
    return gains


def _loss(found: Vectors, reference: Vectors) -> float:
    return 1.0 - float((found * reference).sum(1).mean())
