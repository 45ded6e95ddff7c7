"""A memory to be judged with: entries in a temporary folder, and what the decoder gets to read of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edge_ravlm.export.evaluation.subject import Floats, Look, Subject
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.memory import Hit, Memory, NewEntry, Where

HOPS = 2
"""Entries that the second hop adds, at most."""


@dataclass(frozen=True)
class Note:
    """An entry to be.

    Attributes:
        text: what it says.
        answer: its short answer.
        picture: float32 [dim], the embedding; None where it has no picture.
    """

    text: str
    answer: str
    picture: Floats | None = None


@dataclass(frozen=True)
class Found:
    """A retrieved entry.

    Attributes:
        row: which of the notes.
        passage: as the decoder takes it.
    """

    row: int
    passage: Passage


class Shelf:
    """Notes in a memory; they are named by their rows.

    Attributes:
        notes: in the order of the rows.
    """

    def __init__(self, subject: Subject, memory: Memory, notes: Sequence[Note]) -> None:
        self.notes = notes
        self._subject, self._memory = subject, memory
        texts = subject.words.embed([note.text for note in notes])
        entries = [
            NewEntry(
                text=note.text,
                answer=note.answer,
                modality="text" if note.picture is None else "frame",
                vectors={"text": text} if note.picture is None else {"text": text, "image": note.picture},
            )
            for note, text in zip(notes, texts, strict=True)
        ]
        self._ids = memory.add(entries)
        self._rows = {id_: row for row, id_ in enumerate(self._ids)}

    def ranked(self, look: Look) -> list[int]:
        """All rows that have a picture, the most alike first."""
        return [self._rows[hit.id] for hit in self._memory.search("image", look.embedding, len(self.notes))]

    def found(
        self, question: str, look: Look | None, entries: int, without: frozenset[int] = frozenset()
    ) -> list[Found]:
        """What is read for a question: the nearest pictures, the nearest texts, and what the nearest picture leads to.

        Args:
            question: a sentence.
            look: the picture; None asks without.
            entries: how many each way of searching brings, at most.
            without: rows that are not there.
        """
        left = frozenset(id_ for row, id_ in enumerate(self._ids) if row not in without) if without else None
        where = Where(ids=left)
        asked = self._subject.words.embed([question])[0]
        images: list[Hit] = []
        if look is not None:
            images = self._memory.search("image", look.embedding, entries, where)
        first = [hit.id for hit in images]
        first += [hit.id for hit in self._memory.search("text", asked, entries, where) if hit.id not in first]
        passages = self._passages(first, look, asked, second_hop=False)
        if images:
            finding = self._memory.vectors("text", [images[0].id])[0]
            hops = [hit.id for hit in self._memory.search("text", finding, len(first) + HOPS, where)]
            passages += self._passages([id_ for id_ in hops if id_ not in first][:HOPS], look, finding, second_hop=True)
        return passages

    def _passages(self, ids: Sequence[int], look: Look | None, asked: Floats, *, second_hop: bool) -> list[Found]:
        if not ids:
            return []
        cosines = self._memory.vectors("text", ids) @ asked
        made = []
        for id_, cosine in zip(ids, cosines.tolist(), strict=True):
            row = self._rows[id_]
            alike, product = None, None
            if look is not None and self.notes[row].picture is not None:
                product = self._memory.vectors("image", [id_])[0] * look.embedding
                alike = float(product.sum())
            made.append(Found(row, Passage(self.notes[row].text, alike, product, cosine, second_hop)))
        return made

    def retold(self, found: Sequence[Found], row: int, text: str, question: str) -> list[Passage]:
        """The passages as they would be if that entry said something else."""
        cosine = float(self._subject.words.embed([text])[0] @ self._subject.words.embed([question])[0])
        return [
            Passage(text, one.passage.image_cosine, one.passage.product, cosine) if one.row == row else one.passage
            for one in found
        ]


@contextmanager
def shelved(subject: Subject, notes: Sequence[Note]) -> Iterator[Shelf]:
    """A memory with these notes; it is gone afterwards."""
    spaces = {"image": subject.image_space, "text": subject.text_space}
    with TemporaryDirectory(prefix="edge-ravlm-eval-") as folder:
        with Memory.open(Path(folder) / "memory", spaces, auto_compact=False) as memory:
            yield Shelf(subject, memory, notes)


def blank(look: Look) -> Floats:
    """Cells of no picture."""
    return np.zeros_like(cells_of(look))


def cells_of(look: Look) -> Floats:
    """Its cells; a bundle with a decoder has them."""
    assert look.cells is not None
    return look.cells
