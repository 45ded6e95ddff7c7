"""What peers do alike before and around their models."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.frames import Pixels

Floats = NDArray[np.float32]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of red, green and blue that the models' users normalise with."""

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


def centre_crop(frame: Pixels, shorter: int, side: int, resize: int, statistics: Statistics) -> Floats:
    """Resize, cut out the middle, normalise: torchvision's and CLIP's recipe in OpenCV.

    OpenCV does not smooth before it makes a picture smaller, as Pillow does: less work, in the peers' favour.

    Args:
        frame: uint8 [h, w, 3], BGR.
        shorter: the frame's shorter side after resizing, in pixels.
        side: of the middle that is kept.
        resize: OpenCV's interpolation.
        statistics: to normalise with.

    Returns:
        float32 [1, 3, side, side], RGB.
    """
    height, width = frame.shape[:2]
    scale = shorter / min(height, width)
    small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=resize)
    top, left = (small.shape[0] - side) // 2, (small.shape[1] - side) // 2
    mean, deviation = (np.array(numbers, np.float32) for numbers in statistics)
    rgb = small[top : top + side, left : left + side, ::-1]
    scaled = (rgb * np.float32(1 / 255) - mean) / deviation
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def word_ids(text: str, vocabulary: int) -> list[int]:
    """A number below ``vocabulary`` for each word of a text.

    Stands for the models' tokenizers, whose vocabularies do not install by package name. Theirs cut some words into
    several tokens: more to compute.
    """
    return [zlib.crc32(word.encode()) % vocabulary for word in text.lower().strip("?.!").split()]


def filled(vectors: Sequence[Floats], entries: int) -> Floats:
    """Vectors of what was taught, [d] each, and below them those of ``filler``: float32 [entries, d]."""
    taught = np.stack(vectors).astype(np.float32)
    return np.concatenate([taught, filler(entries - len(taught), taught.shape[1])])


def filler(count: int, dim: int) -> Floats:
    """Random vectors of unit length, float32 [count, dim].

    They stand for what else a memory holds. To find the nearest costs the same whatever they are.
    """
    return unit(np.random.default_rng(0).standard_normal((count, dim), np.float32))


def unit(vectors: Floats) -> Floats:
    """At length 1 along the last axis."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)
