"""Image towers from Hugging Face, by hub id or from a folder: CLIP, SigLIP, DINOv2 and DINOv3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from edge_ravlm.errors import DataError, UsageError
from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.export.teachers.vision import Colours, NetworkTeacher
from edge_ravlm.export.teachers.weights import reading
from edge_ravlm.manifest import Source


@dataclass(frozen=True)
class _Tower:
    """Where a model type keeps its image tower.

    Attributes:
        part: the tower in the model; empty when the model is one.
        projection: the layer from the pooled features into the space shared with text; empty without one.
        asks: whether it has to be told to interpolate its positions for another side; the others do so by themselves.
    """

    part: str = ""
    projection: str = ""
    asks: bool = False


_TOWERS: Mapping[str, _Tower] = MappingProxyType(
    {
        "clip": _Tower("vision_model", "visual_projection", asks=True),
        "siglip": _Tower("vision_model", asks=True),
        "dinov2": _Tower(),
        "dinov2_with_registers": _Tower(),
        "dinov3_vit": _Tower(),
    }
)


def image_teacher(name: str, side: int | None) -> ImageTeacher:
    """The image tower of "hf:ID_OR_FOLDER".

    The embedding is what the model compares with text (CLIP, SigLIP) or its class token (DINO); the tokens are the last
    layer's patches.
    """
    source = name.partition(":")[2]
    with reading_model(source):
        config = AutoConfig.from_pretrained(located(source))
    tower = _TOWERS.get(config.model_type)
    if tower is None:
        raise unsupported(source, f"an image tower of type {', '.join(_TOWERS)}", config.model_type)
    with reading_model(source):
        processor, _ = ImageProcessingMixin.get_image_processor_dict(located(source))
        colours = Colours.of_unit(tuple(processor["image_mean"]), tuple(processor["image_std"]))
    shape = getattr(config, "vision_config", config)
    side = side or _side(processor) or shape.image_size
    if side % shape.patch_size:
        expected = f"a side divisible by its patches of {shape.patch_size} pixels"
        raise UsageError(f"teacher '{name}'", expected=expected, got=f"{side}", do="choose a multiple of it")
    network = _ImageTower(load(source), tower, (side // shape.patch_size) ** 2)
    return NetworkTeacher(name, network, side, colours, (hub_source(source),))


class _ImageTower(nn.Module):
    def __init__(self, model: Any, tower: _Tower, patches: int) -> None:
        super().__init__()
        self.tower = getattr(model, tower.part) if tower.part else model
        self.projection = getattr(model, tower.projection) if tower.projection else nn.Identity()
        self._options = {"interpolate_pos_encoding": True} if tower.asks else {}
        self._patches = patches

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 [n, 3, side, side] -> features [n, dim], tokens [n, patches, c]: no class or register tokens."""
        output = self.tower(pixel_values=images, **self._options)
        return self.projection(output.pooler_output), output.last_hidden_state[:, -self._patches :]


def load(source: str, unused: str = "") -> Any:
    """The whole model in float32; a weight that the files do not hold is an error, not a random number.

    Args:
        source: hub id or folder.
        unused: a part that may be missing since nothing reads it.

    Raises:
        DataError: files are missing, damaged, or not this model's.
    """
    with reading_model(source):
        model, info = AutoModel.from_pretrained(located(source), dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not (unused and key.startswith(f"{unused}.")))
    if missing:
        got = f"{len(missing)} missing, first {missing[0]}"
        raise DataError(f"teacher 'hf:{source}'", expected="all weights", got=got, do="export the whole model again")
    return model


def reading_model(source: str) -> Any:
    """Around every access to the model's files."""
    expected = "a folder or hub id with a configuration, weights and a tokenizer or image processor"
    return reading(f"teacher 'hf:{source}'", expected, "check the name, the network and the files")


def located(source: str) -> str:
    """A folder as a path, anything else as it is: a hub id."""
    folder = Path(source).expanduser()
    return str(folder) if folder.is_dir() else source


def file_of(source: str, name: str) -> Path | None:
    """One of the model's files; None if it has none of that name, or none was downloaded while there was a network."""
    folder = Path(located(source))
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    with reading_model(source):
        try:
            return Path(hf_hub_download(source, name))
        except EntryNotFoundError:
            return None


def hub_source(source: str) -> Source:
    """Origin, and the licence that the model's card states; of a folder only the name, never where it lies."""
    folder = Path(located(source))
    card = file_of(source, "README.md")
    licence = None if card is None else _licence(card)
    name, origin = (folder.name, "a local folder") if folder.is_dir() else (source, "Hugging Face hub")
    return Source(name=name, origin=origin, licence=licence or "not stated by the model's card")


def unsupported(source: str, expected: str, got: str) -> DataError:
    """The error for a model that is readable but of a kind that no teacher is made of."""
    return DataError(f"teacher 'hf:{source}'", expected=expected, got=got, do="choose another model")


def _licence(card: Path) -> str | None:
    """From the YAML block between the card's first two lines of dashes."""
    before, _, rest = card.read_text(encoding="utf-8").partition("---\n")
    found = re.search(r"^license:\s*(\S+)", rest.partition("\n---")[0], re.MULTILINE)
    return found[1] if found and not before.strip() else None


def _side(processor: Mapping[str, Any]) -> int | None:
    """The side that the image processor crops or resizes to; its file has had three spellings."""
    size = processor.get("crop_size") or processor.get("size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    return size if isinstance(size, int) else None
