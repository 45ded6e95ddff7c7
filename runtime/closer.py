"""A second, closer look at what the first one attended to: small things among clutter are recognised by it.

The encoder's own attention tells where the thing is, and a linear read-out of its features how large it is; the cut-out
runs through the same encoder again, at a smaller input size. What is taught, where no deadline presses, is looked at in
several such cut-outs. An embedding is the unit sum of its looks', so that one of any number of looks can be compared
with any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Closer
from edge_ravlm.preprocess import Preprocess

ATTENTION, EXTENT = "attention", "extent"
"""Outputs of an image graph that can look closer: float32 [n, cells] that sum to 1, and float32 [n, 1], the longer side
of what is attended to as a share of the picture's."""

_LEAST, _MOST = 0.3, 0.95
"""Sides of a cut-out, as shares of the picture's: a smaller one would be a blow-up of a few pixels."""


@dataclass(frozen=True)
class Focus:
    """Where the thing is; all as shares of the picture's sides.

    Attributes:
        x, y: its middle.
        extent: its longer side.
    """

    x: float
    y: float
    extent: float


def find(closer: Closer, shape: Preprocess, attention: NDArray[np.float32], extent: float) -> Focus:
    """Where one picture's attention lies.

    Args:
        closer: the bundle's constants.
        shape: of the encoder's input.
        attention: float32 [cells], row by row.
        extent: see ``EXTENT``.
    """
    columns = round((attention.size * shape.width / shape.height) ** 0.5)
    weights = attention.reshape(-1, columns)
    rows = len(weights)
    x = float(weights.sum(0) @ ((np.arange(columns) + 0.5) / columns))
    y = float(weights.sum(1) @ ((np.arange(rows) + 0.5) / rows))
    (gain_x, shift_x), (gain_y, shift_y) = closer.x, closer.y
    return Focus(gain_x * x + shift_x, gain_y * y + shift_y, extent)


def cut_out(picture: Pixels, focus: Focus, margin: float) -> Pixels:
    """The part of a picture that shows the thing.

    Args:
        picture: uint8 [h, w, 3].
        focus: where to look.
        margin: sides of the part, as a multiple of the thing's.
    """
    share = min(max(margin * focus.extent, _LEAST), _MOST)
    height, width = (max(1, int(share * length)) for length in picture.shape[:2])
    top = int(min(max(focus.y * picture.shape[0] - height / 2, 0), picture.shape[0] - height))
    left = int(min(max(focus.x * picture.shape[1] - width / 2, 0), picture.shape[1] - width))
    return picture[top : top + height, left : left + width]


def together(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """One embedding of several looks, float32 [dim] of unit length."""
    total = np.sum(embeddings, axis=0)
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)
