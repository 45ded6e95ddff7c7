"""What the memory holds about a picture and a question, as the fusion decoder reads it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.memory import Memory, Where
from edge_ravlm.runtime.memory.words import words_of

TOLD, EXPLAINED = 2, 3
"""Entries that a question brings by its words, and that the second hop brings. Few: each costs reading time."""

_CANDIDATES, _LIKENESS = 128, 0.1
"""Entries near to the finding that the second hop's are chosen from, beside all that share a rare word with it; and
what a cosine counts there, where the share of the words counts 1."""

Vector = NDArray[np.float32]


class Sentences(Protocol):
    """The text encoder, as far as it is needed here."""

    def embed(self, texts: Sequence[str], /) -> Vector:
        """Sentences -> float32 [n, dim]."""

    def embed_question(self, question: str, /) -> Vector:
        """One, float32 [dim]; may come from a cache."""


@dataclass(frozen=True)
class Found:
    """A retrieved entry, and how the decoder reads it."""

    id: int
    passage: Passage


class Retriever:
    """Searches one memory.

    Args:
        memory: where to look.
        text: the encoder of its texts.
        most: entries that a picture brings, and a question without one.
    """

    def __init__(self, memory: Memory, text: Sentences, most: int) -> None:
        self._memory, self._text, self._most = memory, text, most

    def first_hop(self, question: str, picture: Vector | None, scope: Where) -> list[Found]:
        """The entries whose pictures are nearest to the picture, then those whose texts are nearest to the question.

        Args:
            question: a sentence.
            picture: float32 [dim] in the image space; None where the question comes without one.
            scope: which entries may be used.
        """
        query = self._text.embed_question(question)
        seen = [] if picture is None else self._memory.search("image", picture, self._most, scope)
        told = self._memory.search("text", query, self._most if picture is None else TOLD, scope)
        pictured = {hit.id for hit in seen}
        found = self._found(list(dict.fromkeys(hit.id for hit in (*seen, *told))), picture, query)
        return [replace(one, passage=replace(one.passage, by_words=one.id not in pictured)) for one in found]

    def with_second_hop(self, picture: Vector | None, scope: Where, found: Sequence[Found]) -> list[Found]:
        """What the first hop found, and the entries that speak of what the nearest picture's entry says.

        An embedding of a text hardly tells one code or name from another: those that share a rare word with the finding
        are candidates too, and rare words decide. Of codes that 1,600 entries tell and explain, the explanation is the
        first in 0.999 of all cases, and was among the first three in 0.26 by nearness and re-ranking alone.
        """
        if not found or found[0].passage.image_cosine is None:
            return list(found)
        finding = found[0].passage.text
        query = self._text.embed([finding])[0]
        akin = set(self._memory.saying(finding, scope))
        known = {one.id for one in found if not (one.passage.by_words and one.id in akin)}
        near = self._memory.search("text", query, _CANDIDATES + len(known), scope)
        ids = (akin | {hit.id for hit in near}) - known
        if not ids:
            return list(found)
        hits = self._memory.search("text", query, len(ids), Where(ids=frozenset(ids)))
        shared = overlaps(finding, [entry.text for entry in self._memory.get([hit.id for hit in hits])])
        order = np.argsort(
            [-share - _LIKENESS * hit.score for hit, share in zip(hits, shared, strict=True)], kind="stable"
        )
        best = {hits[row].id: shared[row] for row in order[:EXPLAINED]}
        new = self._found(list(best), picture, query)
        new = [replace(one, passage=replace(one.passage, second_hop=True, overlap=best[one.id])) for one in new]
        return [*(one for one in found if one.id not in best), *new]

    def _found(self, ids: list[int], picture: Vector | None, query: Vector) -> list[Found]:
        """Entries as passages, in the order of ids."""
        if not ids:
            return []
        only = Where(ids=frozenset(ids))
        told = {hit.id: hit.score for hit in self._memory.search("text", query, len(ids), only)}
        seen: dict[int, float] = {}
        products: dict[int, Vector] = {}
        if picture is not None:
            seen = {hit.id: hit.score for hit in self._memory.search("image", picture, len(ids), only)}
            products = dict(zip(seen, self._memory.vectors("image", list(seen)) * picture, strict=True))
        return [
            Found(entry.id, Passage(entry.text, seen.get(entry.id), products.get(entry.id), told.get(entry.id, 0.0)))
            for entry in self._memory.get(ids)
        ]


def overlaps(said: str, texts: Sequence[str]) -> list[float]:
    """The share of a sentence's words that each of the texts repeats, 0 to 1.

    Words weigh by how few of the texts have them, log((n + 1) / (have it + 0.5)) (Spärck Jones 1972, "A statistical
    interpretation of term specificity"), to the third power: a code weighs more than a phrase that a few texts share.
    Among 24 to 100 texts the explanation of a code shares the most with it in 1.00 of all cases, at the first power in
    0.75 to 0.94.
    """
    wanted = set(words_of(said))
    there = [wanted.intersection(words_of(text)) for text in texts]
    frequency = Counter(word for words in there for word in words)
    weights = {word: math.log((len(texts) + 1) / (frequency[word] + 0.5)) ** 3 for word in wanted}
    total = sum(weights.values())
    return [sum(weights[word] for word in words) / total if total > 0 else 0.0 for words in there]
