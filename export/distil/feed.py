"""Batches that are composed, read and resized in threads while the last one is learnt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_ravlm.export.distil.pictures import Batch, Pictures
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.preprocess import Preprocess


@dataclass(frozen=True)
class Inputs:
    """A batch for student and teacher.

    Attributes:
        student: uint8 BGR [n, side, side, 3].
        teacher: the same with its own side, of every ``Sides.every``-th picture.
        things: int64 [n], see ``Batch``.
        captions: one for each picture, or None.
    """

    student: Tensor
    teacher: Tensor
    things: Tensor
    captions: Sequence[str] | None


@dataclass(frozen=True)
class Sides:
    """Sides of the square inputs in pixels.

    Attributes:
        student, teacher: of each.
        every: the teacher sees one of so many pictures.
        early: of the student in early steps.
        is_early: tells which those are.
    """

    student: int
    teacher: int
    every: int = 1
    early: int = 0
    is_early: Callable[[int], bool] = lambda _: False

    def inputs(self, batch: Batch, step: int) -> Inputs:
        """A step's batch, resized for both."""
        things = torch.tensor(batch.things, dtype=torch.int64)
        side = batch.side or self.student
        student = squares(batch.pictures, min(self.early, side) if self.is_early(step) else side)
        return Inputs(student, squares(batch.pictures[:: self.every], self.teacher), things, batch.captions)


def squares(pictures: Sequence[Pixels], side: int) -> Tensor:
    """Pictures as encoder inputs, uint8 [n, side, side, 3]."""
    shape = Preprocess(height=side, width=side)
    return torch.from_numpy(np.concatenate([shape(Frame(picture)) for picture in pictures]))


def feed(
    pictures: Pictures, sides: Sides, parts: Iterable[tuple[int, int]], size: int, workers: int
) -> Iterator[Inputs]:
    """Inputs in order, ``workers`` of them made ahead.

    Args:
        pictures: where they come from.
        sides: of the inputs.
        parts: (step, part) of each.
        size: pictures in a part.
        workers: threads.
    """
    waiting: deque[Future[Inputs]] = deque()
    with ThreadPoolExecutor(workers, "pictures") as pool:
        try:
            for step, part in parts:
                waiting.append(pool.submit(_made, pictures, sides, step, part, size))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _made(pictures: Pictures, sides: Sides, step: int, part: int, size: int) -> Inputs:
    return sides.inputs(pictures.batch(step, part, size), step)
