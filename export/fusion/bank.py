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
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.runtime.encoders import Eye

Done = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""

T = TypeVar("T", bound=Thing)


@dataclass(frozen=True)
class Seen:
    """Pictures, encoded.

    Attributes:
        asked: float16 [n, dim], as what is asked about.
        cells: float16 [n, cells, channels].
    """

    asked: NDArray[np.float16]
    cells: NDArray[np.float16]


def see(pictures: Sequence[Pixels], eye: Eye, done: Done | None = None) -> Seen:
    """Encode pictures, uint8 [h, w, 3] BGR."""
    asked, cells = [], []
    for number, picture in enumerate(pictures, start=1):
        look = eye.closer_look(Frame(picture))
        asked.append(look.embedding.astype(np.float16))
        cells.append(look.cells[0].astype(np.float16))
        if done is not None:
            done(number, len(pictures))
    return Seen(np.stack(asked), np.stack(cells))


@dataclass(frozen=True)
class Bank:
    """Things with several scenes of each.

    Attributes:
        things: their texts are what is asked about.
        taught: float16 [things, views, dim], the scenes as what is taught.
        asked: the same as what is asked about.
        cells: float16 [things, views, cells, channels].
    """

    things: Sequence[Thing]
    taught: NDArray[np.float16]
    asked: NDArray[np.float16]
    cells: NDArray[np.float16]


def make_bank(part: Part[T], views: int, eye: Eye, seed: int, done: Done | None = None) -> Bank:
    """Compose ``views`` scenes of each thing and encode them.

    Args:
        part: a training part.
        views: scenes per thing; one is remembered, another one asked about.
        eye: the encoder that ships, with cells; used from several threads.
        seed: of the scenes.
        done: told after every batch.
    """

    def seen(row: int) -> tuple[NDArray[np.float16], Seen]:
        scenes = [part.scene(row, np.random.default_rng((seed, row, view))) for view in range(views)]
        taught = [eye.study(Frame(scene)).embedding for scene in scenes]
        return np.stack(taught).astype(np.float16), see(scenes, eye)

    found, count = list[tuple[NDArray[np.float16], Seen]](), len(part.things)
    with ThreadPoolExecutor(os.cpu_count()) as crew:
        for one in crew.map(seen, range(count)):
            found.append(one)
            if done is not None:
                done(len(found) * views, count * views)
    taught, seens = zip(*found, strict=True)
    return Bank(
        part.things,
        np.stack(taught),
        np.stack([one.asked for one in seens]),
        np.stack([one.cells for one in seens]),
    )
