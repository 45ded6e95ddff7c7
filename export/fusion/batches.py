"""Episodes as tensors: laid out as the runtime lays a question out, with where every word is to be copied from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from edge_ravlm.export.fusion.episodes import Episode, Texts
from edge_ravlm.runtime.fusion.layout import (
    END,
    LONGEST_BLOCK,
    LONGEST_QUESTION,
    NONE,
    PAD,
    START,
    continues,
    lay_out,
)


@dataclass(frozen=True)
class Batch:
    """Episodes as tensors; n of them, b blocks of t tokens, a words, m places that are filled.

    Attributes:
        tokens, roles: int64 [n, b, t].
        features: float32 [n, b, features].
        products: float32 [n, b, dim].
        cells: float32 [n, cells, channels].
        places: int64 [n, m], see ``FusionDecoder.read``.
        source: int64 [n, m].
        last: int64 [n, a], START and the answer.
        wanted: int64 [n, a], the answer and END; PAD after it.
        continues: float32 [n, a, m, 2].
        right: float32 [n, a, m].
        marks: float32 [n, m, 2], see ``model.marked``.
        kinds: of the episodes.
    """

    tokens: Tensor
    roles: Tensor
    features: Tensor
    products: Tensor
    cells: Tensor
    places: Tensor
    source: Tensor
    last: Tensor
    wanted: Tensor
    continues: Tensor
    right: Tensor
    marks: Tensor
    kinds: tuple[str, ...]

    def everywhere(self, row: int, step: int) -> NDArray[np.float32]:
        """``continues`` of an episode's step as the shipped graphs take it, float32 [1, b t + cells, 2]."""
        found = np.zeros((self.tokens[row].numel() + self.cells.shape[1], 2), np.float32)
        filled = self.places[row] >= 0
        found[self.places[row][filled].numpy()] = self.continues[row, step][filled].numpy()
        return found[None]


def collated(episodes: Sequence[Episode], tokenizer: Tokenizer, texts: Texts, dim: int, longest: int) -> Batch:
    """Lay out episodes and put them together.

    Args:
        episodes: some.
        tokenizer: the decoder's.
        texts: the text encoder that ships.
        dim: of an image embedding.
        longest: words of an answer, END included; what is longer is cut.
    """
    episodes = _with_text_cosines(episodes, texts)
    prompts = [lay_out(tokenizer, episode.question, episode.passages, dim) for episode in episodes]
    b, t = max(len(p.tokens) for p in prompts), max(p.tokens.shape[1] for p in prompts)
    n, cells = len(episodes), episodes[0].cells.shape[0]
    answers = [_answer(episode, tokenizer, t)[:longest] for episode in episodes]
    a, whole = max(map(len, answers)), b * t + cells

    tokens, roles = np.full((n, b, t), PAD, np.int64), np.zeros((n, b, t), np.int64)
    features = np.zeros((n, b, prompts[0].features.shape[1]), np.float32)
    products = np.zeros((n, b, dim), np.float32)
    last, wanted = np.full((n, a), PAD, np.int64), np.full((n, a), PAD, np.int64)
    right, goes_on = np.zeros((n, a, whole), np.float32), np.zeros((n, a, whole, 2), np.float32)
    marks = np.zeros((n, whole, 2), np.float32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        blocks, length = prompt.tokens.shape
        tokens[row, :blocks, :length], roles[row, :blocks, :length] = prompt.tokens, prompt.roles
        features[row, :blocks], products[row, :blocks] = prompt.features, prompt.products
        words = [word for word, _ in answer]
        last[row, : len(words)], wanted[row, : len(words)] = [START, *words[:-1]], words
        for step, (_, place) in enumerate(answer):
            if place is not None:
                right[row, step, place] = 1
        for begin, after in _spans(episodes[row], tokenizer, t):
            marks[row, begin, 0] = marks[row, after, 1] = 1
    source = np.concatenate([tokens.reshape(n, -1), np.full((n, cells), PAD, np.int64)], axis=1)
    for row in range(n):
        pairs = np.stack([np.concatenate([[PAD], last[row, :-1]]), last[row]], axis=1)
        goes_on[row] = continues(source[row], pairs)
    filled = np.concatenate([tokens.reshape(n, -1) != PAD, np.ones((n, cells), bool)], axis=1)
    places = np.full((n, int(filled.sum(1).max())), -1, np.int64)
    for row in range(n):
        there = np.flatnonzero(filled[row])
        places[row, : len(there)] = there
    at = np.where(places < 0, whole - 1, places)  # a cell, which is never copied
    rows = np.arange(n)[:, None]
    return Batch(
        tokens=torch.from_numpy(tokens),
        roles=torch.from_numpy(roles),
        features=torch.from_numpy(features),
        products=torch.from_numpy(products),
        cells=torch.from_numpy(np.stack([episode.cells for episode in episodes]).astype(np.float32)),
        places=torch.from_numpy(places),
        source=torch.from_numpy(source[rows, at]),
        last=torch.from_numpy(last),
        wanted=torch.from_numpy(wanted),
        continues=torch.from_numpy(goes_on.transpose(0, 2, 1, 3)[rows, at].transpose(0, 2, 1, 3)),
        right=torch.from_numpy(right.transpose(0, 2, 1)[rows, at].transpose(0, 2, 1)),
        marks=torch.from_numpy(marks[rows, at]),
        kinds=tuple(episode.kind for episode in episodes),
    )


def _with_text_cosines(episodes: Sequence[Episode], texts: Texts) -> list[Episode]:
    said = [text for episode in episodes for text in (episode.question, episode.query, *_said(episode))]
    vectors, at, found = texts(said), 0, []
    for episode in episodes:
        own = vectors[at : at + 2 + len(episode.passages)]
        at += len(own)
        passages = tuple(
            replace(passage, text_cosine=float(own[int(passage.second_hop)] @ vector))
            for passage, vector in zip(episode.passages, own[2:], strict=True)
        )
        found.append(replace(episode, passages=passages))
    return found


def _said(episode: Episode) -> list[str]:
    return [passage.text for passage in episode.passages]


def _answer(episode: Episode, tokenizer: Tokenizer, t: int) -> list[tuple[int, int | None]]:
    """The answer's words with the places, in blocks of ``t``, that they should be copied from."""
    if episode.answer is None:
        return [(NONE, None), (END, None)]
    if episode.gold is not None:
        copied = _copied(episode, episode.gold, (episode.fact, episode.answer), tokenizer, t)
        if copied:
            return [*copied, (END, None)]
    return [*((word, None) for word in tokenizer.encode(episode.answer, add_special_tokens=False).ids), (END, None)]


def _spans(episode: Episode, tokenizer: Tokenizer, t: int) -> Iterator[tuple[int, int]]:
    """Where each entry's answer begins and where what follows begins, in blocks of ``t``; see ``Episode.alike``."""
    for row, said in enumerate(episode.alike):
        copied = [] if said is None else _copied(episode, row, said, tokenizer, t)
        if copied:
            yield copied[0][1], copied[-1][1] + 1


def _copied(episode: Episode, row: int, said: tuple[str, str], tokenizer: Tokenizer, t: int) -> list[tuple[int, int]]:
    """The answer to ``said`` (fact and answer) as a passage has it: tokens and places; none where it was cut off."""
    text, fact, answer = (part.casefold() for part in (episode.passages[row].text, *said))
    start = text.find(fact)
    if start < 0 or answer not in fact:
        return []
    start += fact.rindex(answer)
    end = start + len(answer)
    encoding = tokenizer.encode(episode.passages[row].text, add_special_tokens=False)
    asked = len(tokenizer.encode(episode.question, add_special_tokens=False).ids[:LONGEST_QUESTION]) + 1
    found = [
        (token, place + asked)
        for place, (token, (low, high)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True))
        if low < end and high > start
    ]
    while found and not text[slice(*encoding.offsets[found[0][1] - asked])].strip():
        found = found[1:]  # the space before a number is a piece of its own
    if not found or found[-1][1] >= LONGEST_BLOCK:
        return []
    return [(token, (row + 1) * t + place) for token, place in found]
