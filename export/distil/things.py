"""Things in hard composed scenes, of several data sets at once: what an encoder needs that is shown a thing once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.composites import composite, located, worn
from edge_ravlm.export.data.scenes import Material, background, object_scene
from edge_ravlm.export.distil.pictures import HELD_OUT, Batch
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.closer import Focus, cut_out

_VIEWS = 1 << 40
"""Empty views are numbered from here on: no data set has as many things."""


@dataclass(frozen=True)
class Share:
    """One data set's part in every batch.

    Attributes:
        material: the *training* part of the data set.
        weight: how often its things are drawn, relative to the other shares.
        mirrored: whether a thing seen in a mirror is still that thing; a sign is not.
        together: so many things that follow one another come in one batch: where things are sorted by name, as signs
            are, they look alike, and telling them apart is what is hard.
    """

    material: Material
    weight: float = 1.0
    mirrored: bool = True
    together: int = 1


@dataclass(frozen=True)
class CloserViews:
    """Of every second step: scenes as the encoder sees them when it looks closer, with what it may get wrong there.

    Attributes:
        whole: pixels a side of the picture that is cut.
        side: pixels a side of the cut-out.
        margin: its size over the thing's, log-uniform.
        off: how far it misses the thing's middle, at most, as a share of the thing's size.
    """

    whole: int
    side: int
    margin: tuple[float, float] = (1.1, 2.5)
    off: float = 0.15


def parted(
    count: int, row: int, seed: int, held_out: float = 0.1, most: int = 48
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which things of a data set of ``count`` are kept and which are learnt; see ``ThingScenes``.

    Args:
        count: things.
        row: of the data set among the shares.
        seed: of the choice.
        held_out: share that is kept.
        most: that are kept, at most.
    """
    order = np.random.default_rng((seed, row)).permutation(count)
    number = min(most, max(1, round(count * held_out)))
    return order[:number], np.sort(order[number:])


class ThingScenes:
    """Things of several data sets, each seen twice in a row; a part of each set's is kept for the held-out pictures.

    Some pairs show no thing but one view twice, in other light and another moment: they are a thing of their own, so
    that empty views are told apart too.

    Args:
        shares: of the data sets.
        seed: of all random choices.
        views: share of the pairs without a thing.
        plain: share of the pictures in which the thing is large and whole, as people show things.
        held_out: share of the things that is kept.
        most: things of one data set that are kept, at most.
        each: held-out pictures per kept thing.
        closer: how the encoder will look closer, if it does.

    Raises:
        DataError: a data set has fewer than two things.
    """

    def __init__(
        self,
        shares: Sequence[Share],
        *,
        seed: int = 0,
        views: float = 0.1,
        plain: float = 0.25,
        held_out: float = 0.1,
        most: int = 48,
        each: int = 4,
        closer: CloserViews | None = None,
    ) -> None:
        self._shares, self._seed, self._views, self._plain, self._each = shares, seed, views, plain, each
        self._closer = closer
        weights = np.array([share.weight for share in shares], float)
        self._weights = weights / weights.sum()
        counts = [len(share.material.objects) for share in shares]
        if not counts or min(counts) < 2:
            raise DataError("things", expected="two of every data set or more", got=f"{counts}", do="give more things")
        self._first, self.count = np.cumsum([0, *counts]), sum(counts)
        parts = [parted(count, row, seed, held_out, most) for row, count in enumerate(counts)]
        self.kept, self.learnt = ([part[side] for part in parts] for side in (0, 1))

    def batch(self, step: int, rank: int, size: int) -> Batch:
        """See ``Pictures``."""
        scenes = [self._scene(step, index) for index in range(rank * size, (rank + 1) * size)]
        side = self._closer.side if self._closer is not None and _is_closer(step) else None
        return Batch([scene for scene, _ in scenes], [thing for _, thing in scenes], side=side)

    def held_out(self) -> Batch:
        """Each kept thing ``each`` times."""
        rng = np.random.default_rng((self._seed, HELD_OUT))
        chosen = [(row, int(index)) for row, kept in enumerate(self.kept) for index in kept for _ in range(self._each)]
        pictures = [composite(self._shares[row].material, index, rng) for row, index in chosen]
        return Batch(pictures, [int(self._first[row]) + index for row, index in chosen])

    def _scene(self, step: int, index: int) -> tuple[Pixels, int]:
        """A picture of a pair, and what it shows: both of a pair draw the same from ``shared``."""
        rng, shared = (np.random.default_rng((self._seed, step, *more)) for more in ((index,), (index // 2, 1)))
        if shared.random() < self._views:
            row = int(shared.integers(len(self._shares)))
            return worn(background(self._shares[row].material, shared), rng), _VIEWS + step % 2**20 * 2**16 + index // 2
        row = int(shared.choice(len(self._shares), p=self._weights))
        share, thing = self._shares[row], self._thing(row, step, index // 2)
        source = share.material
        if share.mirrored and rng.random() < 0.5:
            cut_out = np.ascontiguousarray(source.objects[thing][:, ::-1])
            source, at = Material([cut_out], source.backgrounds), 0
        else:
            at = thing
        name = int(self._first[row]) + thing
        if self._closer is not None and _is_closer(step):
            return closer_view(*located(source, at, rng), self._closer, rng), name
        make = object_scene if rng.random() < self._plain else composite
        return make(source, at, rng), name

    def _thing(self, row: int, step: int, pair: int) -> int:
        """Of one data set, that of a pair: one of a few neighbours that the pairs around it show too."""
        share, learnt = self._shares[row], self.learnt[row]
        group, place = divmod(pair, share.together)
        start = np.random.default_rng((self._seed, step, row, group, 2)).integers(len(learnt))
        return int(learnt[(start + place) % len(learnt)])


def closer_view(scene: Pixels, corners: NDArray[np.float32], closer: CloserViews, rng: np.random.Generator) -> Pixels:
    """What of a scene the encoder sees when it looks closer, uint8 [side, side, 3].

    Args:
        scene: uint8 [s, s, 3] BGR.
        corners: of the thing in it, float32 [4, 2] x and y in pixels.
        closer: how it looks.
        rng: of how well it does.
    """
    low, high = (np.clip(ends(axis=0) / scene.shape[0], 0, 1) for ends in (corners.min, corners.max))
    extent = float((high - low).max())
    x, y = (low + high) / 2 + rng.uniform(-closer.off, closer.off, 2) * extent
    margin = float(np.exp(rng.uniform(*np.log(closer.margin))))
    whole = Preprocess(height=closer.whole, width=closer.whole)(Frame(scene))
    part = cut_out(whole[0], Focus(float(x), float(y), extent), margin)
    return np.asarray(Preprocess(height=closer.side, width=closer.side)(Frame(part))[0], np.uint8)


def _is_closer(step: int) -> bool:
    return step % 2 == 1
