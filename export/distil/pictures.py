"""Pictures to learn from: batches that depend on the seed, the step and the place in the batch, and on nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from edge_ravlm.errors import DataError, FrameError
from edge_ravlm.export.data.scenes import Material, at_most, background, object_scene, paste, weather
from edge_ravlm.frames import Pixels, read_image

_log = logging.getLogger(__name__)

HELD_OUT = 2**40
"""A step that no training reaches: the held-out pictures' random numbers."""

_MOST_HELD_OUT = 256
"""More would cost time at every look and tell no more."""

NOTHING = -1
"""Of a picture without a thing that others show too."""

_FEWEST = 8
"""A folder needs at least as many readable pictures."""


@dataclass(frozen=True)
class Batch:
    """Some pictures.

    Attributes:
        pictures: uint8 [h, w, 3] BGR each, of any size.
        things: what each shows, a number; equal numbers are the same thing seen again, a negative one nothing.
        captions: one for each picture, or None.
        side: pixels of the student's input for them, where it is not its usual one.
    """

    pictures: Sequence[Pixels]
    things: Sequence[int]
    captions: Sequence[str] | None = None
    side: int | None = None


class Pictures(Protocol):
    """Where training takes its pictures from."""

    @property
    def count(self) -> int:
        """Of things; their numbers are below."""
        ...

    def batch(self, step: int, rank: int, size: int) -> Batch:
        """The part ``rank`` of a step's pictures, ``size`` of them.

        Equal arguments give equal pictures, and the first two parts of n pictures are the first part of 2 n.
        """
        ...

    def held_out(self) -> Batch:
        """Always the same pictures, which no batch holds."""
        ...


class ComposedScenes:
    """Objects on photographs, in all lights, each twice in a row; a part is kept for the held-out pictures.

    Args:
        material: the *training* half of the scenes: the parity gate judges on the other one.
        seed: of all random choices.
        held_out: share of the objects that is kept.
        each: held-out pictures per kept object.
    """

    def __init__(self, material: Material, *, seed: int = 0, held_out: float = 0.1, each: int = 4) -> None:
        order = np.random.default_rng(seed).permutation(len(material.objects))
        kept = max(1, round(len(order) * held_out))
        self._material, self._seed, self._each = material, seed, each
        self.kept, self.learnt = order[:kept], order[kept:]
        self.count = len(order)
        if not len(self.learnt):
            raise DataError("scenes", expected="two objects or more", got=f"{len(order)}", do="give more cut-outs")

    def batch(self, step: int, rank: int, size: int) -> Batch:
        """See ``Pictures``."""
        scenes = [self._scene(step, index) for index in range(rank * size, (rank + 1) * size)]
        return Batch([scene for scene, _ in scenes], [thing for _, thing in scenes])

    def held_out(self) -> Batch:
        """Each kept object ``each`` times."""
        rng = np.random.default_rng((self._seed, HELD_OUT))
        kept = np.repeat(self.kept, self._each)
        return Batch([object_scene(self._material, int(index), rng) for index in kept], kept.tolist())

    def _scene(self, step: int, index: int) -> tuple[Pixels, int]:
        """Mostly one large object; sometimes a second small one, one far away, or none; and which object it is."""
        rng = np.random.default_rng((self._seed, step, index))
        first = np.random.default_rng((self._seed, step, index // 2, 1)).choice(self.learnt)
        view, second, kind = background(self._material, rng), rng.choice(self.learnt), rng.random()
        if kind < 0.95:
            size = (0.45, 0.8) if kind < 0.75 else (0.2, 0.45)
            view = paste(view, self._seen(int(first), rng), rng, size)
        if kind > 0.6:
            view = paste(view, self._seen(int(second), rng), rng, (0.1, 0.3))
        return weather(view, rng), int(first) if kind < 0.95 else NOTHING

    def _seen(self, index: int, rng: np.random.Generator) -> Pixels:
        """An object, mirrored half of the time."""
        cut_out = self._material.objects[index]
        return np.ascontiguousarray(cut_out[:, ::-1]) if rng.random() < 0.5 else cut_out


class FolderPictures:
    """A user's pictures without labels, each twice in a row through random crops, mirrors, light, colour and blur.

    Args:
        paths: picture files; those that cannot be read are left out, with a warning that names them.
        seed: of all random choices.
        held_out: share of the files that is kept.
        captions: one for each path, if there are any.
        longest: pixels that the held-out pictures' longer side is reduced to.

    Raises:
        DataError: too few of the files are readable pictures.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        seed: int = 0,
        held_out: float = 0.1,
        captions: Sequence[str] | None = None,
        longest: int = 640,
    ) -> None:
        kept = [row for row, path in enumerate(paths) if _readable(path)]
        broken = sorted(set(paths).difference(paths[row] for row in kept))
        if len(kept) < _FEWEST:
            raise DataError(
                "pictures to learn from",
                expected=f"at least {_FEWEST} that can be read",
                got=f"{len(kept)} of {len(paths)}" + (f"; broken: {_names(broken)}" if broken else ""),
                do="add pictures or replace the broken ones",
            )
        if broken:
            _log.warning("left out %d pictures that cannot be read: %s", len(broken), _names(broken))
        order = [kept[int(row)] for row in np.random.default_rng(seed).permutation(len(kept))]
        count = min(_MOST_HELD_OUT, max(1, round(len(order) * held_out)))
        self._paths, self._captions, self._seed, self._longest = list(paths), captions, seed, longest
        self.kept, self.learnt = order[:count], order[count:]
        self.count = len(paths)

    def batch(self, step: int, rank: int, size: int) -> Batch:
        """See ``Pictures``."""
        places = range(rank * size, (rank + 1) * size)
        rows = [self._row(step, place) for place in places]
        rngs = [np.random.default_rng((self._seed, step, place)) for place in places]
        pictures = [augmented(_read(self._paths[row]), rng) for row, rng in zip(rows, rngs, strict=True)]
        return Batch(pictures, rows, self._said(rows))

    def held_out(self) -> Batch:
        """The kept files as they are, reduced."""
        pictures = [at_most(_read(self._paths[row]), self._longest) for row in self.kept]
        return Batch(pictures, self.kept, self._said(self.kept))

    def _row(self, step: int, place: int) -> int:
        return self.learnt[int(np.random.default_rng((self._seed, step, place // 2, 1)).integers(len(self.learnt)))]

    def _said(self, rows: Sequence[int]) -> list[str] | None:
        return None if self._captions is None else [self._captions[row] for row in rows]


def augmented(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A crop of 30 to 100 % of the area, perhaps mirrored, in other light and colours, sometimes blurred.

    Args:
        picture: uint8 [h, w, 3] BGR.
        rng: of all choices.
    """
    height, width = picture.shape[:2]
    share, aspect = rng.uniform(0.3, 1.0), np.exp(rng.uniform(-0.28, 0.28))
    h = min(height, max(1, round(height * np.sqrt(share / aspect))))
    w = min(width, max(1, round(width * np.sqrt(share * aspect))))
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    seen = picture[y : y + h, x : x + w]
    if rng.random() < 0.5:
        seen = seen[:, ::-1]
    gain = rng.uniform(0.7, 1.3) * (1 + rng.uniform(-0.08, 0.08, 3))
    contrast, mean = rng.uniform(0.7, 1.3), seen.mean()
    lit = ((seen.astype(np.float32) - mean) * contrast + mean) * gain.astype(np.float32)
    if rng.random() < 0.2:
        lit = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.5, 1.5))
    return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def _read(path: Path) -> Pixels:
    return read_image(path).pixels


def _readable(path: Path) -> bool:
    try:
        _read(path)
    except FrameError:
        return False
    return True


def _names(paths: Sequence[Path], most: int = 5) -> str:
    rest = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(path.name for path in paths[:most]) + rest
