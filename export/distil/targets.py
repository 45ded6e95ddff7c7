"""What the student aims at: the teacher's embedding in the student's length, and where the student starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ravlm.errors import DataError
from edge_ravlm.export.distil.feed import Inputs, Sides, feed
from edge_ravlm.export.distil.losses import resized, ridge
from edge_ravlm.export.distil.pictures import Pictures
from edge_ravlm.export.distil.settings import DistilSettings
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.students.whitening import Whitening, fit_whitening
from edge_ravlm.export.teachers import ImageTeacher

_FIT_STEP = 2**41
"""The fit's pictures are those of steps from here on; no training gets that far."""

_FIT_BATCH = 32
_TOKEN_PICTURES = 256
"""Each has dozens of cells: these are enough for the linear map between the grids."""

Texts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Embeds captions: float32 [n, dim] of unit length."""


@dataclass
class Seen:
    """What teacher and student make of the pictures to fit on, batch by batch.

    Attributes:
        embeddings: of the teacher, float32 [n, teacher dim].
        captions: one for each picture, or none.
        features: of the student, pooled, float32 [n, channels].
        cells, goals: of the student's grids [n * cells, channels] and the teacher's, resized [n * cells, c].
    """

    embeddings: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    cells: list[Tensor] = field(default_factory=list)
    goals: list[Tensor] = field(default_factory=list)


def fit_inputs(pictures: Pictures, sides: Sides, settings: DistilSettings) -> Iterable[Inputs]:
    """The pictures that everything in closed form is fitted on."""
    parts = ((_FIT_STEP + number, 0) for number in range(-(-settings.fit_pictures // _FIT_BATCH)))
    return feed(pictures, sides, parts, _FIT_BATCH, settings.workers)


@torch.no_grad()
def look(student: ImageStudent, teacher: ImageTeacher, inputs: Iterable[Inputs], with_tokens: bool) -> Seen:
    """Show both the same pictures."""
    seen, device = Seen(), student.centre.device
    for batch in inputs:
        _settle(student, batch.student.to(device))
        features, mine = student.eval().features(batch.student.to(device))
        embedding, tokens = teacher.embed(batch.teacher.to(device))
        if with_tokens and len(seen.cells) * _FIT_BATCH < _TOKEN_PICTURES:
            seen.cells.append(mine.flatten(0, 1))
            seen.goals.append(resized(tokens, mine.shape[1]).flatten(0, 1))
        seen.features.append(features)
        seen.embeddings.append(embedding)
        seen.captions += batch.captions or []
    return seen


def aim_at(embeddings: Tensor, dim: int, strength: float, said: Tensor | None = None) -> Whitening:
    """How the teacher's embedding becomes ``dim`` numbers.

    With captions the space is turned as a whole (which changes no cosine between pictures) towards the texts, so
    that imitating the teacher and meeting the captions do not pull in different directions.

    Args:
        embeddings: of the teacher, float32 [n, teacher dim].
        dim: numbers of the student.
        strength: of the whitening.
        said: embeddings of the captions, float32 [n, dim].
    """
    found = fit_whitening(embeddings, dim, strength)
    if said is None:
        return found
    left, _, right = torch.linalg.svd(found(embeddings.cpu()).double().T @ said.double())
    return Whitening(found.centre, (found.projection.double() @ left @ right).float().contiguous())


def caption_vectors(texts: Texts, captions: Sequence[str], dim: int) -> Tensor:
    """Float32 [n, dim]; raises DataError if the text encoder has another length."""
    vectors = torch.from_numpy(np.ascontiguousarray(texts(captions), np.float32))
    if vectors.shape[1] != dim:
        raise DataError(
            "captions' embeddings",
            expected=f"{dim} numbers, as the image student has",
            got=f"{vectors.shape[1]}",
            do="give text and image students the same dim",
        )
    return vectors


def start(student: ImageStudent, aim: Whitening, seen: Seen, damping: float) -> None:
    """Give the student's tail the least-squares fit to the teacher's whitened embedding."""
    features = torch.cat(seen.features)
    centre = features.mean(0)
    student.set_tail(centre, ridge(features - centre, aim(torch.cat(seen.embeddings)), damping))


def token_map(seen: Seen, damping: float) -> Tensor | None:
    """The map from the student's cells to the teacher's, float32 [channels, c]; None where tokens do not count."""
    return ridge(torch.cat(seen.cells), torch.cat(seen.goals), damping) if seen.cells else None


def _settle(student: ImageStudent, pixels: Tensor) -> None:
    """Let BatchNorms that have seen nothing yet see some pictures: their statistics start at a guess."""
    if any(isinstance(part, nn.BatchNorm2d) for part in student.modules()):
        student.train().grid(pixels)
