"""A text teacher around any network: sentences or token ids in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ravlm.manifest import Source

Ids = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


class NetworkTextTeacher:
    """A ``TextTeacher`` around a network.

    Args:
        name: as the recipe gives it.
        network: (ids int64 [n, tokens], mask int64 [n, tokens], 1 for real tokens) -> features [n, dim].
        tokenize: texts to token ids, special tokens included, cut to what the network can read.
        tokenizer_json: the same tokenizer as a ``tokenizers`` file.
        pad: the id that fills shorter rows.
        length: to fill every row up to; None fills up to the longest of a batch.
        sources: of the weights.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        tokenize: Callable[[list[str]], list[list[int]]],
        tokenizer_json: bytes,
        *,
        pad: int,
        length: int | None = None,
        sources: tuple[Source, ...],
    ) -> None:
        self.name, self.tokenizer_json, self.sources = name, tokenizer_json, sources
        self._network = network.eval().requires_grad_(False)
        self._tokenize, self._pad, self._length = tokenize, pad, length
        self.dim: int = self._forward(tokenize(["a"])).shape[1]

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Sentence embeddings, float32 [texts, dim], L2-normalised."""
        return self.embed_ids(self._tokenize(list(texts)) if texts else [], batch_size, progress)

    def embed_ids(self, ids: Ids, batch_size: int = 64, progress: Progress | None = None) -> NDArray[np.float32]:
        """Like ``embed`` for token ids that already hold the special tokens; batches are of similar length."""
        return embed_in_batches(ids, self._forward, self.dim, batch_size, progress)

    @torch.inference_mode()
    def _forward(self, ids: Ids) -> Tensor:
        length = self._length or max(1, *(len(row) for row in ids))
        padded = torch.tensor([[*row, *[self._pad] * (length - len(row))] for row in ids])
        mask = torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]
        features: Tensor = self._network(padded, mask.long())
        return nn.functional.normalize(features.float(), dim=1)


def embed_in_batches(
    ids: Ids, forward: Callable[[Ids], Tensor], dim: int, batch_size: int, progress: Progress | None
) -> NDArray[np.float32]:
    """Float32 [rows, dim] in the rows' order; rows of similar length go through ``forward`` together."""
    found = np.empty((len(ids), dim), np.float32)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        found[rows] = forward([ids[i] for i in rows]).numpy()
        if progress is not None:
            progress(start + len(rows), len(order))
    return found
