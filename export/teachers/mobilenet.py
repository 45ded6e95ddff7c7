"""MobileNetV2 with its ImageNet weights (Sandler et al. 2018, arXiv:1801.04381), as torchvision published them.

The modules carry torchvision's names, so that its state dict fits; torchvision itself is not needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.export.teachers.vision import Colours, NetworkTeacher, Pooled
from edge_ravlm.export.teachers.weights import package_file, package_source, reading

IMAGENET = Colours.of_unit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_SIDE = 224
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: how often wider inside, channels, blocks, stride of the first block."""


def image_teacher(name: str, side: int | None) -> ImageTeacher:
    """MobileNetV2 1.0; the embedding is the mean over the grid after the 1280-channel head."""
    network = MobileNetV2()
    weights = package_file(name, "*.pth")
    with reading(f"weights '{weights}'", "a MobileNetV2 state dict", "fetch the package again"):
        state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("classifier.")})
    return NetworkTeacher(name, Pooled(network), side or _SIDE, IMAGENET, (package_source(name),))


class MobileNetV2(nn.Module):
    """The convolutional part: normalised RGB float32 [n, 3, h, w] -> float32 [n, 1280, h/32, w/32], rounded up."""

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        layers: list[nn.Module] = [_convolution(3, channels, 3, stride=2)]
        for expansion, outputs, blocks, first_stride in _STAGES:
            for index in range(blocks):
                layers.append(_Block(channels, outputs, first_stride if index == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*layers, _convolution(channels, 1280, 1))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        grid: Tensor = self.features(images)
        return grid


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [_convolution(inputs, inner, 1)] if expansion > 1 else []
        depthwise = _convolution(inner, inner, 3, stride, groups=inner)
        project = (nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.conv = nn.Sequential(*expand, depthwise, *project)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.conv(inputs)
        return inputs + outputs if self.skips else outputs


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())
