"""Text encoders from Hugging Face, by hub id or from a folder: the towers of CLIP and SigLIP, and sentence encoders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from edge_ravlm.export.teachers import TextTeacher
from edge_ravlm.export.teachers.huggingface import file_of, hub_source, load, located, reading_model, unsupported
from edge_ravlm.export.teachers.text import NetworkTextTeacher


@dataclass(frozen=True)
class _Tower:
    """How a model type with a text tower of its own reads.

    Attributes:
        projection: the layer into the space shared with images; empty without one.
        filled: whether it was trained on rows filled up to its full length, the filling read like text.
    """

    projection: str = ""
    filled: bool = False


_TOWERS: Mapping[str, _Tower] = MappingProxyType({"clip": _Tower("text_projection"), "siglip": _Tower(filled=True)})


def text_teacher(name: str) -> TextTeacher:
    """The text tower or the sentence encoder of "hf:ID_OR_FOLDER"."""
    source = name.partition(":")[2]
    with reading_model(source):
        config = AutoConfig.from_pretrained(located(source))
    tower = _TOWERS.get(config.model_type)
    if tower is None and (not hasattr(config, "vocab_size") or config.is_encoder_decoder):
        raise unsupported(source, f"a text encoder, or a model of type {' or '.join(_TOWERS)}", config.model_type)
    tokenizer = _tokenizer(source)
    model: nn.Module
    if tower is None:
        model = _Sentences(load(source, unused="pooler"), _pooling(source))
        longest = _positions(model) or getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    else:
        model, longest = _TextTower(load(source), tower), config.text_config.max_position_embeddings
    published = (_json(source, "sentence_bert_config.json") or {}).get("max_seq_length") or longest
    limit = min(longest, tokenizer.model_max_length, published)
    return NetworkTextTeacher(
        name,
        model,
        _tokenize(tokenizer, limit),
        str(tokenizer.backend_tokenizer.to_str()).encode(),
        pad=tokenizer.pad_token_id or 0,
        length=limit if tower is not None and tower.filled else None,
        sources=(hub_source(source),),
    )


class _TextTower(nn.Module):
    def __init__(self, model: Any, tower: _Tower) -> None:
        super().__init__()
        self.tower = model.text_model
        self.projection = getattr(model, tower.projection) if tower.projection else nn.Identity()
        self._filled = tower.filled

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask int64 [n, tokens] -> float32 [n, dim]."""
        output = self.tower(input_ids=ids, attention_mask=None if self._filled else mask)
        features: Tensor = self.projection(output.pooler_output)
        return features


class _Sentences(nn.Module):
    """A sentence encoder: the mean over the last layer's real tokens, or its first token."""

    def __init__(self, model: Any, pooling: str) -> None:
        super().__init__()
        self.model, self._pooling = model, pooling

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask int64 [n, tokens] -> float32 [n, dim]."""
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self._pooling == "cls":
            return hidden[:, 0]
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _tokenizer(source: str) -> Any:
    """The fast tokenizer; a ``tokenizer.json`` is read as it is, since its Python class may want sentencepiece."""
    kind = PreTrainedTokenizerFast if file_of(source, "tokenizer.json") else AutoTokenizer
    with reading_model(source):
        tokenizer = kind.from_pretrained(located(source))
    if not tokenizer.is_fast:
        raise unsupported(source, "a fast tokenizer (tokenizer.json)", type(tokenizer).__name__)
    if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}:  # what comes of a folder without its files
        raise unsupported(source, "a tokenizer's files", "none")
    return tokenizer


def _tokenize(tokenizer: Any, limit: int) -> Callable[[list[str]], list[list[int]]]:
    def tokenize(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        return ids

    return tokenize


def _pooling(source: str) -> str:
    """How the model's sentence-transformers files say, "mean" or "cls"; without such files "mean"."""
    modules = _json(source, "modules.json") or []
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    further = sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"})
    if further:
        raise unsupported(source, "a sentence encoder of Transformer, Pooling and Normalize", f"also {further[0]}")
    if "Pooling" not in kinds:
        return "mean"
    settings: dict[str, object] = _json(source, f"{kinds['Pooling']}/config.json") or {}
    flags = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    chosen = [settings["pooling_mode"]] if "pooling_mode" in settings else flags
    known = {"mean": "mean", "pooling_mode_mean_tokens": "mean", "cls": "cls", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or chosen[0] not in known:
        raise unsupported(source, "pooling by mean or cls", " and ".join(map(str, chosen)) or "none")
    return known[str(chosen[0])]


def _positions(model: nn.Module) -> int | None:
    """How many tokens the learned positions are for; RoBERTa's kin count from behind the padding's own position."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _json(source: str, file: str) -> Any:
    """The parsed file, or None when the model has none."""
    path = file_of(source, file)
    with reading_model(source):
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
