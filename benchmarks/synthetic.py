"""The main job's pictures, question and memories.

What the pictures show tells how often a first look is not sure and a second one is taken; nothing else depends on it.
"""

from __future__ import annotations

import cv2
import numpy as np

from edge_ravlm.frames import Pixels
from edge_ravlm.runtime.pipeline import Ravlm

WIDTH, HEIGHT = 1280, 720
QUESTION = "is the gate open?"
TEXTS = ("the gate is open", "the gate is closed")
TAUGHT_EACH = 10


def pictures(count: int, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Pixels]:
    """uint8 [height, width, 3] each: even ones show the first scene, odd ones the second, no two of them alike.

    Args:
        count: how many.
        seed: of their differences.
        size: width and height.
    """
    scenes = np.random.default_rng(0).uniform(40, 215, (2, 9, 16, 3))
    random = np.random.default_rng(seed)
    coarse = [np.clip(scenes[i % 2] + random.normal(0, 20, (9, 16, 3)), 0, 255) for i in range(count)]
    return [_enlarged(picture.astype(np.uint8), size) for picture in coarse]


def teach(ravlm: Ravlm) -> None:
    """Both scenes, TAUGHT_EACH times."""
    shown = pictures(2 * TAUGHT_EACH, seed=1)
    ravlm.memory.add([ravlm.entry(picture, TEXTS[i % 2]) for i, picture in enumerate(shown)])


def _enlarged(coarse: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)
