"""An image teacher around any network: the students' pixels in, unit vectors and tokens out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_ravlm.errors import DataError
from edge_ravlm.manifest import Source

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Colours:
    """What a network was trained to subtract from red, green and blue (0 to 255), and to divide them by."""

    mean: Triple
    std: Triple

    @classmethod
    def of_unit(cls, mean: Triple, std: Triple) -> Colours:
        """From figures for pixels between 0 and 1, as most libraries give them."""
        return cls((mean[0] * 255, mean[1] * 255, mean[2] * 255), (std[0] * 255, std[1] * 255, std[2] * 255))


class NetworkTeacher:
    """An ``ImageTeacher`` around a network.

    Args:
        name: as the recipe gives it.
        network: normalised RGB float32 [n, 3, side, side] -> (features [n, dim], tokens [n, t, c]).
        side: of the square input in pixels.
        colours: the normalisation that the network was trained with.
        sources: of the weights.
    """

    def __init__(self, name: str, network: nn.Module, side: int, colours: Colours, sources: tuple[Source, ...]) -> None:
        self.name, self.side, self.sources = name, side, sources
        self._network = network.eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(part)[:, None, None] for part in (colours.mean, colours.std))
        embedding, _ = self.embed(torch.zeros(1, side, side, 3, dtype=torch.uint8))
        self.dim: int = embedding.shape[1]

    # Not inference_mode: a loss that keeps such tensors for its backward pass would refuse them.
    @torch.no_grad()
    def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 BGR [n, side, side, 3] -> embedding float32 [n, dim] of unit length, tokens float32 [n, t, c].

        Both are on the pixels' device (the network moves there) and have no gradient.

        Raises:
            DataError: the pixels are not bytes, or not of this side.
        """
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (self.side, self.side, 3):
            raise DataError(
                f"pixels for teacher '{self.name}'",
                expected=f"uint8 [n, {self.side}, {self.side}, 3]",
                got=f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}",
                do="resize them with edge_ravlm.preprocess.Preprocess",
            )
        device = pixels.device
        images = (pixels.flip(3).permute(0, 3, 1, 2).float() - self._mean.to(device)) / self._std.to(device)
        features, tokens = self._network.to(device)(images)
        return nn.functional.normalize(features.float(), dim=1), tokens.float()


class Pooled(nn.Module):
    """A convolutional network's grid as features (its mean) and tokens (its cells, row by row)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 [n, 3, h, w] -> float32 [n, c], float32 [n, cells, c]."""
        grid = self.network(images)
        return grid.mean((2, 3)), grid.flatten(2).transpose(1, 2)
