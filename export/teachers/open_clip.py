"""Image and text towers of ``open_clip`` models, with its own weights from the hub or with a file of yours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from edge_ravlm.export.teachers import ImageTeacher, TextTeacher
from edge_ravlm.export.teachers.text import NetworkTextTeacher
from edge_ravlm.export.teachers.vision import Colours, NetworkTeacher
from edge_ravlm.export.teachers.weights import reading
from edge_ravlm.manifest import Source

_SCHEMAS = ("hf-hub:", "local-dir:")
"""How open_clip itself names a model whose configuration lies beside its weights."""


def image_teacher(name: str, side: int | None) -> ImageTeacher:
    """The image tower of "open_clip:ARCH/PRETRAINED_OR_FILE", or of open_clip's own "hf-hub:…" or "local-dir:…".

    The embedding is what the model compares with text; the tokens are the last stage's grid. A file of its own says
    nothing about colours: it is taken to want those of OpenAI's CLIP; a folder's configuration says it.
    """
    model = _load(name, side)
    visual = model.visual
    sides = visual.image_size
    looks = visual.preprocess_cfg
    colours = Colours.of_unit(tuple(looks["mean"]), tuple(looks["std"]))
    return NetworkTeacher(
        name, _ImageTower(visual), sides if isinstance(sides, int) else sides[0], colours, (_source(name),)
    )


def text_teacher(name: str) -> TextTeacher:
    """The text tower of the same names; rows are filled up to its full length, as it was trained."""
    model = _load(name, None)
    with _reading(name):
        tokenizer = open_clip.get_tokenizer(_names(name)[0])
    fast = getattr(tokenizer, "tokenizer", None)
    return NetworkTextTeacher(
        name,
        _TextTower(model),
        _tokenize(tokenizer),
        (_simple_tokenizer(tokenizer) if fast is None else str(fast.backend_tokenizer.to_str())).encode(),
        pad=0 if fast is None else fast.pad_token_id,
        length=tokenizer.context_length,
        sources=(_source(name),),
    )


class _ImageTower(nn.Module):
    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 [n, 3, side, side] -> features [n, dim], tokens [n, cells, c] without the class token."""
        output = self.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)
        return output["image_features"], output["image_intermediates"][-1].flatten(2).transpose(1, 2)


class _TextTower(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, _: Tensor) -> Tensor:
        """Ids int64 [n, tokens] -> float32 [n, dim]; the model finds the end of the text by itself."""
        features: Tensor = self.model.encode_text(ids)
        return features


def _load(name: str, side: int | None) -> Any:
    model, weights = _names(name)
    with _reading(name):
        return open_clip.create_model(model, weights or None, force_image_size=side, require_pretrained=True)


def _names(name: str) -> tuple[str, str]:
    """What open_clip calls the model, and its weights; a schema's name stands for both."""
    rest = name.partition(":")[2]
    if rest.startswith(_SCHEMAS):
        return rest, ""
    architecture, _, weights = rest.partition("/")
    return architecture, weights


def _source(name: str) -> Source:
    """Of a file or folder only its name, never where it lies."""
    model, weights = _names(name)
    local = model.startswith("local-dir:") or Path(weights).is_file()
    parts = (model.removeprefix("local-dir:"), weights) if local else (model, weights)
    label = "/".join(Path(part).name if local else part for part in parts if part)
    return Source(name=label, origin="a local file" if local else "open_clip", licence="not stated by open_clip")


def _reading(name: str) -> Any:
    expected = "an open_clip architecture, and weights on the hub or in a file that are all of it"
    return reading(f"teacher '{name}'", expected, "check the names, the network and the file")


def _tokenize(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    def tokenize(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts).tolist()
        return ids

    return tokenize


def _simple_tokenizer(simple: SimpleTokenizer) -> str:
    """CLIP's byte-pair encoding, which open_clip runs in Python, as a ``tokenizers`` file.

    It differs in one thing: broken characters and HTML entities are not repaired first.
    """
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    start, end = (simple.decoder[token] for token in (simple.sot_token_id, simple.eot_token_id))
    tokenizer = Tokenizer(BPE(simple.encoder, merges, unk_token=end, end_of_word_suffix="</w>"))
    tokenizer.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = PreTokenizers(
        [Split(Regex(words), "removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    ends = [(start, simple.sot_token_id), (end, simple.eot_token_id)]
    tokenizer.post_processor = TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    tokenizer.enable_truncation(simple.context_length)
    return str(tokenizer.to_str())
