"""Searching the memory by a text, by a picture, or by both; without a deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import UsageError
from edge_ravlm.frames import Frame, Region
from edge_ravlm.runtime.answer import Evidence
from edge_ravlm.runtime.encoders import ImageEncoder, Look, TextEncoder, check_question
from edge_ravlm.runtime.memory import Hit, Memory, Where

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """What to look for.

    Attributes:
        vectors: by the memory's field.
        words: the text that was asked with; entries that share rare words with it come first.
    """

    vectors: Mapping[str, Vector]
    words: str = ""


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
            fields = (field for field in ("text", "meaning") if field in self._memory.spaces)
            found.append(Query(dict.fromkeys(fields, words), text))
        if picture is not None:
            frame, encoder = Frame.of(picture), self._image
            look = encoder.study(frame) if region is None else encoder.look(encoder.preprocess(frame, region))
            found.append(Query({"image": look.embedding} if of == "image" else {"text": self._meaning(look)}))
        return found

    def nearest(self, queries: Sequence[Query], k: int, where: Where) -> list[Evidence]:
        """The ``k`` memories that are nearest to all of the queries; at least one query."""
        hits = self._hits(queries, k, where)
        best = sorted(hits, key=lambda hit: (-hit.score - hit.shared, hit.id))[:k]
        entries = self._memory.get([hit.id for hit in best])
        return [Evidence(entry.id, entry.text, hit.score) for entry, hit in zip(entries, best, strict=True)]

    def _meaning(self, look: Look) -> Vector:
        if look.meaning is None:
            raise UsageError(
                "search of texts for a picture",
                expected="a bundle whose image encoder knows the text space",
                got=f"'{self._bundle.manifest.name}', whose manifest has no meaning_space",
                do="export one with `align.sources` in its recipe, or search with a text",
            )
        return look.meaning

    def _hits(self, queries: Sequence[Query], k: int, where: Where) -> list[Hit]:
        if len(queries) == 1:
            return self._of_one(queries[0], k, where)
        wide = max(4 * k, 64)
        ids = frozenset(hit.id for query in queries for hit in self._of_one(query, wide, where))
        sums = {id_: Hit(id_, 0.0) for id_ in ids}  # an entry without one of the two counts zero for it
        for query in queries if ids else ():
            for hit in self._of_one(query, len(ids), Where(ids=ids)):
                before = sums[hit.id]
                score, shared = before.score + hit.score / len(queries), before.shared + hit.shared / len(queries)
                sums[hit.id] = Hit(hit.id, score, shared)
        return list(sums.values())

    def _of_one(self, query: Query, k: int, where: Where) -> list[Hit]:
        """The nearest entries of each field that the query is for; the best hit of an entry counts."""
        found: dict[int, Hit] = {}
        for field, vector in query.vectors.items():
            for hit in self._memory.search(field, vector, k, where, words=query.words if field == "text" else ""):
                before = found.get(hit.id, hit)
                found[hit.id] = Hit(hit.id, max(hit.score, before.score), max(hit.shared, before.shared))
        return list(found.values())
