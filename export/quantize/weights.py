"""Int8 weights that no CPU can saturate.

Without VNNI, x86 multiplies uint8 activations with int8 weights by ``vpmaddubsw``: it adds the products of *two*
neighbours in 16 bits and clips. 255 * (127 + 127) does not fit, so plain 8-bit weights give wrong sums on such CPUs
(measured: cosine to FP32 0.91 where exact sums reach 0.99) and 7-bit weights everywhere cost half of the resolution.
Here only channels that hold two large neighbours of the same sign get a coarser scale; all others keep their 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIMIT = 128
"""Most that two neighbouring weights of one sign may add up to: 255 * 128 still fits in 16 bits, signed."""


def pair_safe(weights: NDArray[np.float32], ordered: bool) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 weights and their scales, one per output channel.

    Args:
        weights: float32 [outputs, ...].
        ordered: whether the trailing axes, flattened, are the order in which the kernel walks; then only its pairs
            (0, 1), (2, 3) … are held to the limit, else any two weights of a channel.

    Returns:
        int8 like ``weights``, float32 [outputs]; ``saturates`` is false for them.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    # One below the limit leaves room for both neighbours to be rounded up by a half.
    scales = np.maximum(np.abs(rows).max(1) / 127, _largest_pairs(rows, ordered) / (LIMIT - 1))
    scales[scales == 0] = 1
    found = np.float32(scales)
    return np.rint(rows / found[:, None].astype(np.float64)).astype(np.int8).reshape(weights.shape), found


def saturates(quantized: NDArray[np.int8], ordered: bool) -> bool:
    """Whether some uint8 input makes a pair of products overflow 16 bits."""
    rows = quantized.reshape(len(quantized), -1).astype(np.float64)
    return bool(_largest_pairs(rows, ordered).max(initial=0) > LIMIT)


def _largest_pairs(rows: NDArray[np.float64], ordered: bool) -> NDArray[np.float64]:
    """Per row the largest sum of a pair, counting weights of one sign only: products of both signs cancel."""
    parts = np.stack([np.maximum(rows, 0), np.maximum(-rows, 0)])
    if not ordered:
        return np.asarray(np.sort(parts, 2)[..., -2:].sum(2).max(0))
    parts = np.pad(parts, ((0, 0), (0, 0), (0, parts.shape[2] % 2)))
    return np.asarray(parts.reshape(*parts.shape[:2], -1, 2).sum(3).max((0, 2)))
