"""Has anything moved? A comparison that costs a tenth of an encoder run."""

from __future__ import annotations

import cv2
import numpy as np

from edge_ravlm.frames import Pixels

BLOCK = 16
"""Side of the squares that are compared, in pixels of the encoder's input."""

BRIGHTNESS_BELOW, PATTERN_BELOW = 4, 24
"""Mean change of a square in one channel, and mean size of the changes in it, that count as movement (levels of 255).

Between two frames with sensor noise of 10 levels the first is 0.9 (3 in the worst square of many frames), the second 11
(14). A hand-sized thing that appears leaves tens of the first; a pattern as bright as its background only the second.
"""


def is_still(before: Pixels, now: Pixels) -> bool:
    """Whether two encoder inputs, uint8 [1, h, w, 3], show the same scene: no square of it changed."""
    squares = (now.shape[2] // BLOCK, now.shape[1] // BLOCK)
    changes = np.subtract(now[0], before[0], dtype=np.int16)
    means = cv2.resize(changes, squares, interpolation=cv2.INTER_AREA)
    if np.abs(means).max() >= BRIGHTNESS_BELOW:
        return False
    sizes = cv2.resize(cv2.absdiff(now[0], before[0]), squares, interpolation=cv2.INTER_AREA)
    return bool(sizes.max() < PATTERN_BELOW)
