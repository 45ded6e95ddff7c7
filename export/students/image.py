"""The image encoder that ships: raw pixels in, an L2-normalised embedding and the spatial tokens out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ravlm.export.students.whitening import fit_whitening

MEAN, STD = 127.0, 128.0
"""What a backbone's input was normalised with: (pixel - MEAN) / STD. The INT8 graph starts on these very bytes."""


class Backbone(Protocol):
    """The convolutional part of a student; an ``nn.Module``.

    Attributes:
        channels: depth of its grid.
    """

    channels: int

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised BGR float32 [n, 3, h, w] -> float32 [n, channels, h/32, w/32], sides rounded up."""
        ...

    def fused(self) -> nn.Module:
        """A copy in deploy form: BatchNorm folded, branches merged; the same numbers in ``eval`` mode."""
        ...


class ImageStudent(nn.Module):
    """A backbone, pooled by attention, centred and projected.

    Pooling weighs the grid's cells by the softmax of their products with a learnt query, so that a small thing among
    clutter is not drowned by its background; the query starts at zero, which is the plain mean.

    Args:
        backbone: a ``Backbone``.
        dim: length of the embedding.
        side: of the square input in pixels that it learns with.
    """

    def __init__(self, backbone: nn.Module, dim: int = 256, side: int = 224) -> None:
        super().__init__()
        self.backbone, self.side = backbone, side
        self.channels = int(getattr(backbone, "channels"))  # noqa: B009 (nn.Module types its attributes as tensors)
        self.query = nn.Parameter(torch.zeros(self.channels))
        self.centre = nn.Parameter(torch.zeros(self.channels))
        self.projection = nn.Parameter(torch.eye(self.channels, dim))

    @property
    def dim(self) -> int:
        """Numbers per embedding."""
        return self.projection.shape[1]

    def grid(self, pixels: Tensor) -> Tensor:
        """uint8 BGR [n, h, w, 3] -> float32 [n, channels, h/32, w/32]."""
        # Transposed while the pixels are bytes: a quarter of the traffic, and the INT8 graph starts right after it.
        images = (pixels.permute(0, 3, 1, 2).float() - MEAN) / STD
        # Contiguous: the strides of transposed bytes make torch 2.13's backward convolutions corrupt the heap on a CPU.
        grid: Tensor = self.backbone(images.contiguous())
        return grid

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 BGR [n, h, w, 3] -> embedding float32 [n, dim] of unit length, tokens float32 [n, cells, channels].

        The tokens are the grid's cells, row by row.
        """
        features, tokens = self.features(pixels)
        return self.embedding(features), tokens

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 BGR [n, h, w, 3] -> pooled float32 [n, channels] of unit length, tokens [n, cells, channels]."""
        tokens = self.grid(pixels).flatten(2).transpose(1, 2)
        return pooled(tokens, self.query), tokens

    def embedding(self, features: Tensor) -> Tensor:
        """Pooled features, float32 [n, channels] -> float32 [n, dim] of unit length."""
        return nn.functional.normalize((features - self.centre) @ self.projection, dim=1)

    @torch.no_grad()
    def set_tail(self, centre: Tensor, projection: Tensor) -> None:
        """Replace what follows the pooling: float32 [channels] and [channels, dim]."""
        self.centre.copy_(centre)
        self.projection.copy_(projection)

    @torch.no_grad()
    def fit_whitening(self, batches: Iterable[Tensor], strength: float = 0.5) -> None:
        """Set centre and projection from pictures: half-whitened PCA (see ``whitening.fit_whitening``).

        Args:
            batches: uint8 BGR [n, h, w, 3].
            strength: 0 keeps the spread, 1 whitens fully.
        """
        found = fit_whitening(torch.cat([self.features(batch)[0] for batch in batches]), self.dim, strength)
        self.set_tail(found.centre, found.projection)

    def fused(self) -> ImageStudent:
        """The deploy form, on its own weights and in ``eval`` mode; numerically equal."""
        backbone: Backbone = self.backbone  # type: ignore[assignment]  # nn.Module hides what its subclasses add
        deployed = ImageStudent(backbone.fused(), self.dim, self.side)
        deployed.set_tail(self.centre, self.projection)
        deployed.query.data.copy_(self.query.data)
        return deployed.eval()


def pooled(tokens: Tensor, query: Tensor) -> Tensor:
    """Cells float32 [n, cells, channels], weighed by a query [channels] -> float32 [n, channels] of unit length."""
    weights = torch.softmax(tokens @ query, dim=1)
    return nn.functional.normalize((weights[:, None] @ tokens)[:, 0], dim=1)


def batched(pixels: Sequence[NDArray[np.uint8]], size: int = 32) -> Iterable[Tensor]:
    """Encoder inputs (uint8 [1, h, w, 3] each) as batches of at most ``size``."""
    for start in range(0, len(pixels), size):
        yield torch.from_numpy(np.concatenate(pixels[start : start + size]))
