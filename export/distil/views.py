"""The teacher as the student knows it, to be held against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edge_ravlm.export.distil.feed import Sides
from edge_ravlm.export.distil.pictures import Pictures
from edge_ravlm.export.distil.settings import DistilSettings
from edge_ravlm.export.distil.targets import fit_inputs
from edge_ravlm.export.students.image import batched
from edge_ravlm.export.students.whitening import fit_whitening
from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.frames import Pixels

View = Callable[[Sequence[Pixels]], NDArray[np.float32]]
"""Encoder inputs, uint8 [1, side, side, 3] each, to float32 [n, dim] of unit length."""


def whitened(
    teacher: ImageTeacher,
    pictures: Pictures,
    dim: int,
    settings: DistilSettings = DistilSettings(),  # noqa: B008 (frozen)
) -> View:
    """The teacher's embedding as the student aims at it, fitted on the same pictures as in ``distil``.

    Captions turn the student's space as a whole; this view is not turned, which changes no cosine.

    Args:
        teacher: whose embedding.
        pictures: to fit on.
        dim: of the student.
        settings: of the student's training.
    """
    device = torch.device(settings.device)
    inputs = fit_inputs(pictures, Sides(student=teacher.side, teacher=teacher.side), settings)
    embeddings = torch.cat([teacher.embed(batch.teacher.to(device))[0].cpu() for batch in inputs])
    aim = fit_whitening(embeddings, dim, settings.whitening)

    def view(pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        found = [aim(teacher.embed(batch.to(device))[0]).cpu() for batch in batched(pixels)]
        return np.asarray(torch.cat(found).numpy(), np.float32)

    return view
