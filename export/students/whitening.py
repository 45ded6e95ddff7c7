"""Half-whitened PCA: how embeddings of any length become ``dim`` numbers that retrieve well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_ravlm.errors import DataError


@dataclass(frozen=True)
class Whitening:
    """A centre to subtract and a projection.

    Attributes:
        centre: float32 [channels].
        projection: float32 [channels, dim].
    """

    centre: Tensor
    projection: Tensor

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Float32 [n, channels] -> float32 [n, dim] of unit length."""
        centred = embeddings - self.centre.to(embeddings.device)
        return nn.functional.normalize(centred @ self.projection.to(embeddings.device), dim=1)


def fit_whitening(embeddings: Tensor, dim: int, strength: float = 0.5) -> Whitening:
    """PCA with each direction divided by its spread ** ``strength``.

    Args:
        embeddings: float [n, channels]; n and channels at least ``dim``.
        dim: directions to keep, those of the largest spread.
        strength: 0 keeps the spread, 1 whitens fully (Jégou & Chum 2012); half is the usual compromise.

    Raises:
        DataError: there are fewer embeddings, or fewer channels, than ``dim``.
    """
    if min(embeddings.shape) < dim:
        count, channels = embeddings.shape
        raise DataError(
            f"embedding of {dim} numbers",
            expected=f"at least {dim} pictures and {dim} channels to find its directions",
            got=f"{count} pictures, {channels} channels",
            do="give more pictures or lower dim",
        )
    exact = embeddings.double().cpu()
    centre = exact.mean(0)
    _, spread, directions = torch.linalg.svd(exact - centre, full_matrices=False)
    # A direction without spread carries no information: it must not be divided by next to nothing.
    scales = spread[:dim].clamp(min=1e-6 * float(spread[0]) + 1e-12) ** -strength
    return Whitening(centre.float(), (directions[:dim].T * scales).float().contiguous())
