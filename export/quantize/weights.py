"""Int8 weights that no CPU can saturate, rounded for the inputs that they will meet.

Without VNNI, x86 multiplies uint8 activations with int8 weights by ``vpmaddubsw``: it adds the products of *two*
neighbours in 16 bits and clips. 255 * (127 + 127) does not fit, so plain 8-bit weights give wrong sums on such CPUs
(measured: cosine to FP32 0.91 where exact sums reach 0.99), and 7-bit weights cost resolution everywhere (0.97).
Here only channels that hold two large neighbours of one sign get a coarser scale; all others keep their 8 bits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

LIMIT = 128
"""Most that two neighbouring weights of one sign may add up to: 255 * 128 still fits in 16 bits, signed."""


def symmetric_scales(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales that use all 8 bits, float32 [outputs], for weights [outputs, inputs] of kernels that add exactly."""
    return np.asarray(np.abs(weights).max(1) / 127, np.float32)


def pair_safe_scales(weights: NDArray[np.float32], ordered: bool) -> NDArray[np.float32]:
    """Scales for which rounded weights never saturate a pair.

    Args:
        weights: float32 [outputs, inputs].
        ordered: whether the inputs are in the order in which the kernel walks them; then only its pairs (0, 1),
            (2, 3) … are held to the limit, else any two weights of a channel.

    Returns:
        float32 [outputs].
    """
    rows = weights.astype(np.float64)
    # One below the limit leaves room for both neighbours to be rounded up by a half.
    scales = np.maximum(np.abs(rows).max(1) / 127, _largest_pairs(rows, ordered) / (LIMIT - 1))
    return np.asarray(scales, np.float32)


def round_nearest(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Each weight to its nearest multiple of the channel's scale, int8 [outputs, inputs]."""
    return np.rint(weights / scales.astype(np.float64)[:, None]).clip(-127, 127).astype(np.int8)


def round_for_inputs(
    weights: NDArray[np.float32],
    scales: NDArray[np.float32],
    moments: NDArray[np.float64],
    paired: bool,
    damping: float = 0.01,
) -> NDArray[np.int8]:
    """Round one input after the other, each time letting the inputs to come make up for the error so far.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323), held to the pair limit. On the starter it lifts the mean cosine from
    0.992 to 0.998 at no cost on the device.

    Args:
        weights: float32 [outputs, inputs].
        scales: float32 [outputs], of ``pair_safe_scales`` where ``paired``.
        moments: float64 [inputs, inputs], second moments of the inputs; or [outputs, inputs, inputs] where every
            output has inputs of its own.
        paired: whether the kernel adds neighbours in 16 bits.
        damping: share of the mean moment added to the diagonal, so that it can be inverted.

    Returns:
        int8 [outputs, inputs].
    """
    rest, steps = torch.from_numpy(weights).double(), torch.from_numpy(scales).double()
    upper = _inverse_root(torch.from_numpy(moments), damping)
    rounded = torch.zeros_like(rest)
    for k in range(rest.shape[1]):
        low, high = _room(rounded[:, k - 1] if paired and k % 2 else torch.zeros_like(steps))
        rounded[:, k] = torch.clamp(torch.round(rest[:, k] / steps), low, high)
        row = upper[..., k, k:]
        error = (rest[:, k] - rounded[:, k] * steps) / row[..., 0]
        rest[:, k:] -= error[:, None] * row
    return np.asarray(rounded.numpy(), np.int8)


def saturates(quantized: NDArray[np.int8], ordered: bool) -> bool:
    """Whether some uint8 inputs make a pair of products of int8 [outputs, inputs] overflow 16 bits."""
    return bool(_largest_pairs(quantized.astype(np.float64), ordered).max(initial=0) > LIMIT)


def _largest_pairs(rows: NDArray[np.float64], ordered: bool) -> NDArray[np.float64]:
    """Per row the largest sum of a pair, counting weights of one sign only: products of both signs cancel."""
    parts = np.stack([np.maximum(rows, 0), np.maximum(-rows, 0)])
    if ordered:
        parts = np.pad(parts, ((0, 0), (0, 0), (0, parts.shape[2] % 2)))
        return np.asarray(parts.reshape(*parts.shape[:2], -1, 2).sum(3).max((0, 2)))
    return np.asarray(np.sort(parts, 2)[..., -2:].sum(2).max(0))


def _room(neighbour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value [outputs] beside an already rounded neighbour."""
    high = torch.clamp(LIMIT - torch.clamp(neighbour, min=0), max=127)
    low = -torch.clamp(LIMIT + torch.clamp(neighbour, max=0), max=127)
    return low, high


def _inverse_root(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with U^T U = (moments + damping)^-1; an input that is always zero gets no say."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-9)
    damped = moments + damping * mean[..., None, None] * torch.eye(moments.shape[-1], dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
