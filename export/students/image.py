"""The image encoder that ships: raw pixels in, an L2-normalised embedding and the spatial tokens out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ravlm.export.teachers.efficientnet import MEAN, STD, EfficientNetLite


class ImageStudent(nn.Module):
    """EfficientNet-Lite without its classification head, pooled and whitened.

    The grid is taken before the 1280-channel head: on composed scenes 320 pooled channels retrieve as well (recall@1
    0.301 against 0.302), tell fixed-camera states apart better, and save a twelfth of the weights.

    Args:
        backbone: its head is not used.
        dim: length of the embedding.
    """

    def __init__(self, backbone: EfficientNetLite, dim: int = 256) -> None:
        super().__init__()
        self.stem, self.blocks = _for_bgr(backbone.stem), backbone.blocks
        depth = backbone.blocks[-1].project.out_channels
        self.register_buffer("centre", torch.zeros(depth))
        self.register_buffer("projection", torch.eye(depth, dim))

    def grid(self, pixels: Tensor) -> Tensor:
        """uint8 BGR [n, h, w, 3] -> float32 [n, 320, h/32, w/32]."""
        # Transposed while the pixels are bytes: a quarter of the traffic, and the INT8 graph starts right after it.
        grid = nn.functional.relu6(self.stem((pixels.permute(0, 3, 1, 2).float() - MEAN) / STD))
        for block in self.blocks:
            grid = block(grid)
        return grid

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 BGR [n, h, w, 3] -> embedding float32 [n, dim] of unit length, tokens float32 [n, h*w/1024, 320]."""
        grid = self.grid(pixels)
        pooled = nn.functional.normalize(grid.mean((2, 3)), dim=1)
        embedding = nn.functional.normalize((pooled - self.centre) @ self.projection, dim=1)
        return embedding, grid.flatten(2).transpose(1, 2)

    @torch.inference_mode()
    def fit_whitening(self, batches: Iterable[Tensor], strength: float = 0.5) -> None:
        """Set centre and projection from pictures: PCA with each direction divided by its spread ** ``strength``.

        Args:
            batches: uint8 BGR [n, h, w, 3].
            strength: 0 keeps the spread, 1 whitens fully (Jégou & Chum 2012); half is the usual compromise.
        """
        pooled = torch.cat([nn.functional.normalize(self.grid(b).mean((2, 3)), dim=1) for b in batches])
        centre = pooled.double().mean(0)
        _, spread, directions = torch.linalg.svd(pooled.double() - centre, full_matrices=False)
        dim = self.projection.shape[1]
        self.centre.copy_(centre)
        self.projection.copy_(directions[:dim].T * spread[:dim] ** -strength)


def _for_bgr(stem: nn.Module) -> nn.Module:
    """A stem trained on RGB, reordered to take OpenCV's BGR: free here, a pass over the pixels at run time."""
    stem = copy.deepcopy(stem)
    (convolution,) = (m for m in stem.modules() if isinstance(m, nn.Conv2d))
    convolution.weight.data = convolution.weight.data.flip(1)
    return stem


def batched(pixels: Sequence[NDArray[np.uint8]], size: int = 32) -> Iterable[Tensor]:
    """Encoder inputs (uint8 [1, h, w, 3] each) as batches of at most ``size``."""
    for start in range(0, len(pixels), size):
        yield torch.from_numpy(np.concatenate(pixels[start : start + size]))
