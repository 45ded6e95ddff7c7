"""The pictures that a bundle is judged on: retrieval among objects, and small "show it, name it, ask it" tasks.

The gate judges on the held-out half; the answering constants are fitted on the training half. Both get the same kinds
of question, made here from composed scenes or from a folder of the user's own pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.export.data.scenes import Material, background, object_scene, paste, weather
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.voting import FEW

SMALL, LARGE = (0.2, 0.45), (0.35, 0.7)
"""Sizes of what changes in a task, as shares of the picture's side."""

_MOST = 400
"""Pictures of a folder that are used, at most."""


@dataclass(frozen=True)
class Task:
    """A fixed view that is taught in a few states and then asked about.

    Attributes:
        taught: pictures with the state that each shows.
        asked: further pictures of the same view, with their true state.
        foreign: pictures of other views: the right answer is "I don't know".
    """

    taught: Sequence[tuple[Pixels, int]]
    asked: Sequence[tuple[Pixels, int]]
    foreign: Sequence[Pixels]


@dataclass(frozen=True)
class JudgeSet:
    """What to judge on; pictures are uint8 [h, w, 3] BGR of any size.

    Attributes:
        memories: one picture of each object.
        queries: other pictures of these objects.
        labels: int64 [queries], which memory is right.
        tasks: states of fixed views.
    """

    memories: Sequence[Pixels]
    queries: Sequence[Pixels]
    labels: NDArray[np.int64]
    tasks: Sequence[Task]

    @property
    def pictures(self) -> list[Pixels]:
        """Memories and queries."""
        return [*self.memories, *self.queries]


def judge_set(material: Material, *, each: int = 2, tasks: int = 40, seed: int = 0) -> JudgeSet:
    """Retrieval of every object, and tasks, from composed scenes.

    Args:
        material: one half of the scenes.
        each: queries per object, each on another background.
        tasks: how many fixed views.
        seed: of all random choices.
    """
    rng = np.random.default_rng(seed)
    objects = range(len(material.objects))
    memories = [object_scene(material, index, rng) for index in objects]
    labels = np.repeat(np.arange(len(material.objects)), each)
    queries = [object_scene(material, int(index), rng) for index in labels]
    return JudgeSet(memories, queries, labels, state_tasks(material, tasks, seed))


def state_tasks(material: Material, count: int, seed: int) -> list[Task]:
    """``count`` tasks of ``state_task``."""
    rng = np.random.default_rng([seed, count])
    return [state_task(material, rng) for _ in range(count)]


def state_task(material: Material, rng: np.random.Generator, states: int | None = None) -> Task:
    """A view in which something is there or not, or one of two to FEW things stands in the same place.

    In a third of the pictures something unrelated stands elsewhere in the view as well.
    """
    states = int(rng.integers(2, FEW + 1)) if states is None else states
    view = background(material, rng)
    size = SMALL if rng.random() < 0.5 else LARGE
    place = int(rng.integers(2**31))
    chosen = rng.choice(len(material.objects), states + 2, replace=False)
    things: list[Pixels | None] = [material.objects[int(index)] for index in chosen[:states]]
    if rng.random() < 0.5:
        things[-1] = None  # the state "nothing there"
    passer_by = material.objects[int(chosen[-1])]

    def picture(state: int) -> Pixels:
        thing = things[state]
        # The same seed for every picture: the thing keeps its place.
        scene = view if thing is None else paste(view, thing, np.random.default_rng(place), size)
        if rng.random() < 0.3:
            scene = paste(scene, passer_by, rng, (0.08, 0.2))
        return weather(scene, rng)

    taught = [(picture(state), state) for state in range(states) for _ in range(4)]
    asked = [(picture(state), state) for state in range(states) for _ in range(4)]
    other = int(chosen[-2])
    return Task(taught, asked, [object_scene(material, other, rng), weather(background(material, rng), rng)])


def judge_folder(pictures: Sequence[Pixels], each: int = 2, tasks: int = 40, seed: int = 0) -> JudgeSet:
    """The same from pictures of which nothing is known: each is an object of its own, seen again in another crop.

    Args:
        pictures: uint8 [h, w, 3] BGR, two or more.
        each: queries per picture.
        tasks: how many pairs or triples of pictures are told apart.
        seed: of all random choices.
    """
    rng = np.random.default_rng(seed)
    used = [pictures[int(i)] for i in rng.permutation(len(pictures))[:_MOST]]
    labels = np.repeat(np.arange(len(used)), each)
    queries = [_seen_again(used[int(index)], rng) for index in labels]
    return JudgeSet(used, queries, labels, [_telling_apart(used, rng) for _ in range(tasks if len(used) > 3 else 0)])


def _telling_apart(pictures: Sequence[Pixels], rng: np.random.Generator) -> Task:
    states = int(rng.integers(2, FEW + 1))
    *views, foreign = (pictures[int(i)] for i in rng.choice(len(pictures), states + 1, replace=False))
    taught = [(_seen_again(view, rng), state) for state, view in enumerate(views) for _ in range(4)]
    asked = [(_seen_again(view, rng), state) for state, view in enumerate(views) for _ in range(4)]
    return Task(taught, asked, [_seen_again(foreign, rng)])


def _seen_again(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """A crop of 70 to 95 % of each side, in other light."""
    height, width = picture.shape[:2]
    share = rng.uniform(0.7, 0.95)
    h, w = max(1, round(height * share)), max(1, round(width * share))
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return weather(picture[y : y + h, x : x + w], rng)


def prepared(pictures: Sequence[Pixels], preprocess: Preprocess) -> list[Pixels]:
    """Encoder inputs, uint8 [1, height, width, 3] each."""
    return [preprocess(Frame(picture)) for picture in pictures]
