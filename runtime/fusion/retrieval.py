"""What the memory holds about a picture and a question, as the fusion decoder reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.memory import Memory, Where
from edge_ravlm.runtime.memory.words import overlaps

TOLD, EXPLAINED = 2, 3
"""Entries that a question brings by its words, and that the second hop brings. Few: each costs reading time."""

_CANDIDATES, _LIKENESS = 128, 0.1
"""Entries among which the second hop's are chosen, and what a cosine counts there, where shared words count 1."""

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
        told = self._memory.search("text", query, self._most if picture is None else TOLD, scope, words=question)
        found = self._found(list(dict.fromkeys(hit.id for hit in (*seen, *told))), picture, query)
        shared = {hit.id: hit.shared for hit in told} | dict.fromkeys(hit.id for hit in seen)
        return [replace(one, passage=replace(one.passage, shared=shared[one.id])) for one in found]

    def with_second_hop(self, picture: Vector | None, scope: Where, found: Sequence[Found]) -> list[Found]:
        """What the first hop found, and the entries that speak of what the nearest picture's entry says.

        Rare words that they share with it count, or no code or name would be told from another.
        """
        if not found or found[0].passage.image_cosine is None:
            return list(found)
        finding = found[0].passage.text
        query = self._text.embed([finding])[0]
        hits = self._memory.search("text", query, _CANDIDATES, scope, words=finding)
        texts = self._memory.texts([hit.id for hit in hits])
        overlap = dict(zip((hit.id for hit in hits), overlaps(finding, texts), strict=True))
        # What the question's words brought, too, may speak of it.
        known = {one.id for one in found if one.passage.shared is None or not overlap.get(one.id)}
        hits = sorted(hits, key=lambda hit: -overlap[hit.id] - _LIKENESS * hit.score)
        best = [hit.id for hit in hits if hit.id not in known][:EXPLAINED]
        new = self._found(best, picture, query)
        new = [replace(one, passage=replace(one.passage, second_hop=True, overlap=overlap[one.id])) for one in new]
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
