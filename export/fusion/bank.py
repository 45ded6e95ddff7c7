"""Pictures as the shipping encoder sees them, made once before the training: thousands of episodes draw on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.export.data.datasets import Part, Thing
from edge_ravlm.frames import Pixels

Look = Callable[[Sequence[Pixels]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Embeds pictures: embeddings float32 [n, dim] of unit length and cells float32 [n, cells, channels]; called from
several threads."""

Done = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""

T = TypeVar("T", bound=Thing)


@dataclass(frozen=True)
class Seen:
    """Pictures, encoded.

    Attributes:
        embeddings: float16 [n, dim].
        cells: float16 [n, cells, channels].
    """

    embeddings: NDArray[np.float16]
    cells: NDArray[np.float16]


def see(pictures: Sequence[Pixels], look: Look, done: Done | None = None, size: int = 16) -> Seen:
    """Encode pictures, ``size`` at a time."""
    embeddings, cells = [], []
    for first in range(0, len(pictures), size):
        found = look(pictures[first : first + size])
        embeddings.append(found[0].astype(np.float16))
        cells.append(found[1].astype(np.float16))
        if done is not None:
            done(min(first + size, len(pictures)), len(pictures))
    return Seen(np.concatenate(embeddings), np.concatenate(cells))


@dataclass(frozen=True)
class Bank:
    """Things with several scenes of each.

    Attributes:
        things: their texts are what is asked about.
        embeddings: float16 [things, views, dim].
        cells: float16 [things, views, cells, channels].
    """

    things: Sequence[Thing]
    embeddings: NDArray[np.float16]
    cells: NDArray[np.float16]

    def part(self, rows: Sequence[int]) -> Bank:
        """Some of the things."""
        return Bank([self.things[row] for row in rows], self.embeddings[rows], self.cells[rows])


def make_bank(part: Part[T], views: int, look: Look, seed: int, done: Done | None = None) -> Bank:
    """Compose ``views`` scenes of each thing and encode them.

    Args:
        part: a training part.
        views: scenes per thing; one is remembered, another one asked about.
        look: the encoder that ships.
        seed: of the scenes.
        done: told after every batch.
    """

    def seen(row: int) -> Seen:
        scenes = [part.scene(row, np.random.default_rng((seed, row, view))) for view in range(views)]
        embeddings, cells = look(scenes)
        return Seen(embeddings.astype(np.float16), cells.astype(np.float16))

    found, count = list[Seen](), len(part.things)
    with ThreadPoolExecutor(os.cpu_count()) as crew:
        for one in crew.map(seen, range(count)):
            found.append(one)
            if done is not None:
                done(len(found) * views, count * views)
    return Bank(part.things, np.stack([one.embeddings for one in found]), np.stack([one.cells for one in found]))
