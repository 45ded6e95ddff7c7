"""What several tests of the export half share."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge_ravlm.export.onnx_graph import image_graph
from edge_ravlm.export.students.image import ImageStudent, batched
from edge_ravlm.preprocess import Preprocess


class SmallBackbone(nn.Module):
    """Every kind of layer that real students have; a thousandth of their work."""

    channels = 24

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 12, 3, stride=2))
        self.expand = nn.Conv2d(12, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(32, 12, 1)
        self.plain = nn.Conv2d(12, self.channels, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        relu6 = nn.functional.relu6
        start = relu6(self.stem(images))
        grid = start + self.project(relu6(self.depthwise(relu6(self.expand(start)))))
        return torch.relu(self.plain(grid))

    def fused(self) -> nn.Module:
        return self


@pytest.fixture(scope="session")
def small_pictures() -> list[np.ndarray]:
    """Encoder inputs, uint8 [1, 32, 32, 3] each, smooth like photographs."""
    rng = np.random.default_rng(4)
    coarse = rng.uniform(-40, 296, (96, 5, 5, 3)).clip(0, 255).astype(np.uint8)
    return [cv2.resize(picture, (32, 32), interpolation=cv2.INTER_CUBIC)[None] for picture in coarse]


@pytest.fixture(scope="session")
def small_student(small_pictures: list[np.ndarray]) -> ImageStudent:
    """An image student of a few thousand random weights, whitened as real ones are."""
    torch.manual_seed(0)
    student = ImageStudent(SmallBackbone(), dim=16, side=32).eval()
    student.fit_whitening(batched(small_pictures))
    return student


@pytest.fixture(scope="session")
def small_model(small_student: ImageStudent) -> bytes:
    """It as an ONNX graph in full precision."""
    return bytes(image_graph(small_student, Preprocess(height=32, width=32)).SerializeToString())


@pytest.fixture
def small_graph(small_model: bytes) -> onnx.ModelProto:
    """The same, a test's own to change."""
    return onnx.load_model_from_string(small_model)


@pytest.fixture(scope="session")
def hard_model(small_model: bytes) -> bytes:
    """The small model with a layer ``expand`` that 8 bits cannot hold: huge weights on a channel that is always dark.

    Full precision does not mind them; in INT8 they leave the other weights a few steps.
    """
    model = onnx.load_model_from_string(small_model)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name.startswith("backbone.stem"):
            array[0] = 0
        elif tensor.name == "backbone.expand.weight":
            array[:, 0] = 200
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return bytes(model.SerializeToString())
