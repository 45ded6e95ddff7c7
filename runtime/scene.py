"""Has anything moved? A comparison that costs a tenth of an encoder run."""

from __future__ import annotations

import cv2
import numpy as np

from edge_ravlm.frames import Pixels

BLOCK = 16
"""Side of the squares that are compared, in pixels of the encoder's input."""

STILL_BELOW = 4.0
"""Mean change of a square, in grey levels of 255, that counts as movement. Averaged over 16x16x3 values, sensor noise
of 10 levels leaves 0.4; a hand-sized thing that appears leaves tens."""


def is_still(before: Pixels, now: Pixels) -> bool:
    """Whether two encoder inputs, uint8 [1, h, w, 3], show the same scene: no square of it changed."""
    difference = cv2.subtract(now[0], before[0], dtype=cv2.CV_16S)
    squares = (now.shape[2] // BLOCK, now.shape[1] // BLOCK)
    means = cv2.resize(difference, squares, interpolation=cv2.INTER_AREA)
    return bool(np.abs(means).max() < STILL_BELOW)
