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

_DAMPING = 0.01
"""Share of the mean moment that is added to the diagonal, so that it can be inverted."""


def symmetric_scales(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales that use all 8 bits, float32 [outputs], for weights [outputs, inputs] of kernels that add exactly."""
    return np.asarray(np.abs(weights).max(1) / 127, np.float32)


def pair_safe_scales(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales for which rounded weights never saturate a pair.

    Args:
        weights: float32 [outputs, inputs], the inputs in the order in which the kernel walks them.

    Returns:
        float32 [outputs].
    """
    rows = np.pad(weights.astype(np.float64), ((0, 0), (0, weights.shape[1] % 2)))
    signs = np.stack([np.maximum(rows, 0), np.maximum(-rows, 0)])  # products of both signs cancel
    pairs = signs.reshape(2, len(rows), -1, 2).sum(3).max((0, 2))
    # One below the limit leaves room for both neighbours to be rounded up by a half.
    return np.asarray(np.maximum(np.abs(rows).max(1) / 127, pairs / (LIMIT - 1)), np.float32)


def round_for_inputs(
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    scales: NDArray[np.float32],
    moments: NDArray[np.float64],
    paired: bool,
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Round one input after the other, each time letting the inputs to come make up for the error so far.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323), held to the pair limit. What the last weight leaves goes into the
    bias, so that rounding does not shift the mean of any output.

    Args:
        weights: float32 [outputs, inputs], the inputs in the order in which the kernel walks them.
        bias: float32 [outputs].
        scales: float32 [outputs], of ``pair_safe_scales`` where ``paired``.
        moments: float64 [inputs + 1, inputs + 1], second moments of the inputs and a constant 1; or
            [outputs, inputs + 1, inputs + 1] where every output has inputs of its own.
        paired: whether the kernel adds neighbours in 16 bits.

    Returns:
        int8 [outputs, inputs] and the corrected bias, float64 [outputs].
    """
    rest, steps = torch.from_numpy(np.column_stack([weights, bias])).double(), torch.from_numpy(scales).double()
    upper = _inverse_root(torch.from_numpy(moments))
    rounded = torch.zeros_like(rest[:, :-1])
    for k in range(rounded.shape[1]):
        low, high = _room(rounded[:, k - 1] if paired and k % 2 else torch.zeros_like(steps))
        rounded[:, k] = torch.clamp(torch.round(rest[:, k] / steps), low, high)
        row = upper[..., k, k:]
        error = (rest[:, k] - rounded[:, k] * steps) / row[..., 0]
        rest[:, k:] -= error[:, None] * row
    return np.asarray(rounded.numpy(), np.int8), rest[:, -1].numpy()


def _room(neighbour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value [outputs] beside an already rounded neighbour."""
    high = torch.clamp(LIMIT - torch.clamp(neighbour, min=0), max=127)
    low = -torch.clamp(LIMIT + torch.clamp(neighbour, max=0), max=127)
    return low, high


def _inverse_root(moments: torch.Tensor) -> torch.Tensor:
    """Upper triangular U with U^T U = (damped moments)^-1; an input that is always zero gets no say."""
    diagonal = moments.diagonal(dim1=-2, dim2=-1)
    extra = _DAMPING * diagonal[..., :-1].mean(-1, keepdim=True).clamp(min=1e-9).expand_as(diagonal).clone()
    extra[..., -1] = 0  # the constant
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments + torch.diag_embed(extra)))
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
