"""Composed scenes for calibration, parity and the answering constants: cut-outs on photographs, two disjoint halves.

``train`` and ``held_out`` share neither an object nor a background. These are composites, not street photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.export.data.packages import fetch
from edge_ravlm.frames import Pixels

SIDE = 320
"""Scenes are square, this many pixels a side."""

PHOTO_SIDE = 1000
"""Pixels that backgrounds are reduced to."""

_HELD_OUT_PHOTOS = ("leuvenA", "building", "home", "fruits", "stuff", "board", "aloeL", "messi5", "butterfly")


@dataclass(frozen=True)
class Material:
    """What one half of the scenes is composed from.

    Attributes:
        objects: uint8 [h, w, 4] BGRA cut-outs.
        backgrounds: uint8 [h, w, 3] BGR photographs, at most PHOTO_SIDE pixels a side.
    """

    objects: Sequence[Pixels]
    backgrounds: Sequence[Pixels]


@dataclass(frozen=True)
class Stamp:
    """A cut-out photograph or drawing with what its author says it shows.

    Attributes:
        pixels: uint8 [h, w, 4] BGRA.
        caption: in English; empty where there is none.
        folder: what the collection files it under, such as ``animals/birds``.
    """

    pixels: Pixels
    caption: str
    folder: str = ""

    @property
    def is_photo(self) -> bool:
        """Whether it is cut out of a photograph of a thing: no drawing, symbol, coin, house or sign."""
        parts = self.folder.split("/")
        return parts[0] in _PHOTOGRAPHED and "cartoon" not in parts


_PHOTOGRAPHED = frozenset(
    {"animals", "clothes", "food", "hobbies", "household", "medical", "plants", "sports", "vehicles"}
)


def stamps() -> tuple[list[Stamp], list[Stamp]]:
    """The training half and the held-out half; fetches the package when it is not cached."""
    found = list(_with_alpha(p for p in sorted(fetch("tuxpaint-stamps").rglob("*.png")) if "_mirror" not in p.stem))
    order = np.random.default_rng(0).permutation(len(found))
    half = len(found) // 2
    return [found[i] for i in order[:half]], [found[i] for i in order[half:]]


def material() -> tuple[Material, Material]:
    """The training half and the held-out half; fetches the packages when they are not cached."""
    train, unseen = ([stamp.pixels for stamp in half] for half in stamps())
    wallpapers = [*_photos(fetch("mate-backgrounds"), "nature"), *_photos(fetch("lomiri-wallpapers"))]
    held_out = [p for p in _photos(fetch("opencv-doc")) if p.stem in _HELD_OUT_PHOTOS]
    return (
        Material(train, [_small(p) for p in wallpapers]),
        Material(unseen, [_small(p) for p in held_out]),
    )


def background(source: Material, rng: np.random.Generator) -> Pixels:
    """A random square of a random photograph, uint8 [SIDE, SIDE, 3]."""
    photo = source.backgrounds[int(rng.integers(len(source.backgrounds)))]
    height, width = photo.shape[:2]
    side = min(height, width, int(rng.integers(250, 600)))
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    square = cv2.resize(photo[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(square, np.uint8)


def paste(scene: Pixels, cut_out: Pixels, rng: np.random.Generator, size: tuple[float, float]) -> Pixels:
    """The scene with the cut-out somewhere on it, its longer side ``size`` (a range) of the scene's."""
    scale = scene.shape[0] * rng.uniform(*size) / max(cut_out.shape[:2])
    shape = [max(1, round(n * scale)) for n in cut_out.shape[1::-1]]
    piece = cv2.resize(cut_out, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    height, width = piece.shape[:2]
    y, x = rng.integers(scene.shape[0] - height + 1), rng.integers(scene.shape[1] - width + 1)
    alpha = piece[..., 3:].astype(np.float32) / 255
    out: Pixels = scene.copy()
    under = out[y : y + height, x : x + width]
    out[y : y + height, x : x + width] = np.rint(under * (1 - alpha) + piece[..., :3] * alpha)
    return out


def weather(scene: Pixels, rng: np.random.Generator) -> Pixels:
    """Another moment of the same view: light, colour temperature, a pixel of shake, sensor noise."""
    gain = np.float32(rng.uniform(0.75, 1.2) * (1 + rng.uniform(-0.04, 0.04, 3)))
    shift = np.array([[1, 0, rng.uniform(-1.5, 1.5)], [0, 1, rng.uniform(-1.5, 1.5)]], np.float32)
    moved = cv2.warpAffine(scene, shift, scene.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    taken = rng.standard_normal(moved.shape, np.float32)
    taken *= np.float32(rng.uniform(1, 6))
    taken += moved * gain
    return np.asarray(np.clip(taken, 0, 255, out=taken), np.uint8)


def object_scene(source: Material, index: int, rng: np.random.Generator) -> Pixels:
    """Object ``index`` once on a random background, in some light."""
    return weather(paste(background(source, rng), source.objects[index], rng, (0.45, 0.8)), rng)


def object_scenes(source: Material, each: int, seed: int) -> tuple[list[Pixels], NDArray[np.int64]]:
    """``each`` scenes per object, and the object's index per scene."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(source.objects)), each)
    return [object_scene(source, int(index), rng) for index in labels], labels


def at_most(picture: Pixels, longest: int) -> Pixels:
    """The picture, reduced so that its longer side has ``longest`` pixels if it has more."""
    scale = min(1.0, longest / max(picture.shape[:2]))
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def _photos(folder: Path, part: str = "") -> list[Path]:
    found = (p for p in sorted(folder.rglob("*.jpg")) if part in p.parts or not part)
    return [p for p in found if not p.is_symlink()]


def _small(path: Path) -> Pixels:
    return at_most(np.asarray(cv2.imread(str(path)), np.uint8), PHOTO_SIDE)


def _with_alpha(paths: Iterator[Path]) -> Iterator[Stamp]:
    for path in paths:
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is not None and picture.ndim == 3 and picture.shape[2] == 4:
            alpha = picture[..., 3]
            if 0.05 < np.mean(alpha > 0) < 0.95:
                folder = path.parent.as_posix().partition("/tuxpaint/stamps/")[2]
                yield Stamp(np.asarray(picture, np.uint8), _caption(path.with_suffix(".txt")), folder)


def _caption(path: Path) -> str:
    """Its first line; the others are translations."""
    return path.read_text(encoding="utf-8").partition("\n")[0].strip() if path.is_file() else ""
