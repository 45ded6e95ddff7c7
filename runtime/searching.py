"""Searching the memory by a text, by a picture, or by both; without a deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import UsageError
from edge_ravlm.frames import Frame, Region
from edge_ravlm.runtime.answer import Evidence
from edge_ravlm.runtime.encoders import ImageEncoder, Look, TextEncoder, check_question
from edge_ravlm.runtime.memory import Memory, Where

Vector = NDArray[np.float32]

Query = Mapping[str, Vector]
"""What to look for, by the memory's field."""


class Searcher:
    """Finds the memories nearest to texts and pictures.

    Args:
        bundle: an opened bundle.
        memory: where to look.
        image: the bundle's image encoder.
        text: its text encoder.
    """

    def __init__(self, bundle: Bundle, memory: Memory, image: ImageEncoder, text: TextEncoder) -> None:
        self._bundle, self._memory, self._image, self._text = bundle, memory, image, text

    def queries(
        self,
        text: str | None,
        picture: Frame | NDArray[Any] | None,
        region: Region | None,
        of: Literal["image", "text"],
    ) -> list[Query]:
        """What to look for; see ``Ravlm.search``."""
        found: list[Query] = []
        if text is not None:
            words = self._text.embed_question(check_question(text))
            # A memory that was made without the field, and may not be written, has none.
            found.append({field: words for field in ("text", "meaning") if field in self._memory.spaces})
        if picture is not None:
            frame, encoder = Frame.of(picture), self._image
            look = encoder.study(frame) if region is None else encoder.look(encoder.preprocess(frame, region))
            found.append({"image": look.embedding} if of == "image" else {"text": self._meaning(look)})
        return found

    def nearest(self, queries: Sequence[Query], k: int, where: Where) -> list[Evidence]:
        """The ``k`` memories that are nearest to all of the queries; at least one query."""
        scores = self._scores(queries, k, where)
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        entries = self._memory.get([id_ for id_, _ in best])
        return [Evidence(entry.id, entry.text, score) for entry, (_, score) in zip(entries, best, strict=True)]

    def _meaning(self, look: Look) -> Vector:
        if look.meaning is None:
            raise UsageError(
                "search of texts for a picture",
                expected="a bundle whose image encoder knows the text space",
                got=f"'{self._bundle.manifest.name}', whose manifest has no meaning_space",
                do="export one with `align.sources` in its recipe, or search with a text",
            )
        return look.meaning

    def _scores(self, queries: Sequence[Query], k: int, where: Where) -> dict[int, float]:
        if len(queries) == 1:
            return self._cosines(queries[0], k, where)
        wide = max(4 * k, 64)
        ids = frozenset(id_ for query in queries for id_ in self._cosines(query, wide, where))
        if not ids:
            return {}
        sums = dict.fromkeys(ids, 0.0)  # an entry without one of the two counts zero for it
        for query in queries:
            for id_, score in self._cosines(query, len(ids), Where(ids=ids)).items():
                sums[id_] += score / len(queries)
        return sums

    def _cosines(self, query: Query, k: int, where: Where) -> dict[int, float]:
        """The nearest entries of each field that the query is for; the largest cosine of an entry counts."""
        found: dict[int, float] = {}
        for field, vector in query.items():
            for hit in self._memory.search(field, vector, k, where):
                found[hit.id] = max(hit.score, found.get(hit.id, -1.0))
        return found
