"""A peer's model as ONNX: ``python -m peers.export_graphs NAME FILE``, in the environment ``torch``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.export.onnx_graph import free_sides, image_graph, traced
from peers.environments import hide_torchvision
from peers.student_torch import student as student_network

if __name__ == "__main__":
    hide_torchvision()

from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


class _Embedding(nn.Module):
    """A CLIP tower whose only output is its embedding, at unit length."""

    def __init__(self, tower: nn.Module, output: str) -> None:
        super().__init__()
        self._tower, self._output = tower, output

    def forward(self, inputs: Tensor) -> Tensor:
        return normalize(getattr(self._tower(inputs), self._output), dim=1)


def clip_image(config: CLIPVisionConfig | None = None) -> onnx.ModelProto:
    """``pixels`` float32 [1, 3, side, side] -> ``vector`` float32 [1, dim]; ViT-B/32 unless told."""
    torch.manual_seed(0)
    config = config or CLIPVisionConfig()
    tower = _Embedding(CLIPVisionModelWithProjection(config), "image_embeds").eval()
    example = torch.zeros(1, 3, config.image_size, config.image_size)
    return traced(tower, (example,), ("pixels",), ("vector",), None)


def clip_text(config: CLIPTextConfig | None = None) -> onnx.ModelProto:
    """``tokens`` int64 [1, 77] -> ``vector`` float32 [1, dim]; that of ViT-B/32 unless told."""
    torch.manual_seed(0)
    config = config or CLIPTextConfig()
    tower = _Embedding(CLIPTextModelWithProjection(config), "text_embeds").eval()
    example = torch.full((1, config.max_position_embeddings), config.eos_token_id)
    return traced(tower, (example,), ("tokens",), ("vector",), None)


def student() -> onnx.ModelProto:
    """Our student in full precision, for pictures of any size."""
    bundle = Bundle.open(STARTER)
    graph = image_graph(student_network(bundle), bundle.manifest.preprocess)
    free_sides(graph)
    return graph


GRAPHS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "clip_image": clip_image,
    "clip_text": clip_text,
    "student": student,
}


if __name__ == "__main__":
    name, file = sys.argv[1:]
    Path(file).write_bytes(GRAPHS[name]().SerializeToString())
