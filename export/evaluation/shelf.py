"""A memory to be judged with: entries in a temporary folder, and what the decoder gets to read of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_ravlm.export.evaluation.subject import Floats, Look, Subject
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.fusion.retrieval import Retriever
from edge_ravlm.runtime.memory import Memory, NewEntry, Where


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
        self._words, self._memory = subject.words, memory
        # Without a decoder nothing is read, only ranked.
        self._retriever = Retriever(memory, subject.words, subject.reader.entries if subject.reader else 1)
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
        self, question: str, look: Look | None, *, hops: int = 1, without: frozenset[int] = frozenset()
    ) -> list[Found]:
        """What the runtime would give the decoder to read, best first.

        Args:
            question: a sentence.
            look: at the picture; None asks without one.
            hops: 2 searches once more with what was found first.
            without: rows that are not there.
        """
        left = frozenset(id_ for row, id_ in enumerate(self._ids) if row not in without) if without else None
        scope, picture = Where(ids=left), None if look is None else look.embedding
        found = self._retriever.first_hop(question, picture, scope)
        if hops > 1:
            found = self._retriever.with_second_hop(picture, scope, found)
        return [Found(self._rows[one.id], one.passage) for one in found]

    def spoken_of(self, question: str, *, words: bool) -> int:
        """The row whose text is nearest to a question; with ``words`` rare words count too, as at run time."""
        query = self._words.embed_question(question)
        return self._rows[self._memory.search("text", query, 1, words=question if words else "")[0].id]

    def retold(self, found: Sequence[Found], row: int, text: str, question: str) -> list[Passage]:
        """The passages as they would be if that entry said something else."""
        cosine = float(self._words.embed([text])[0] @ self._words.embed_question(question))
        return [replace(one.passage, text=text, text_cosine=cosine) if one.row == row else one.passage for one in found]


@contextmanager
def shelved(subject: Subject, notes: Sequence[Note]) -> Iterator[Shelf]:
    """A memory with these notes; it is gone afterwards."""
    spaces = {"image": subject.image_space, "text": subject.text_space}
    with (
        TemporaryDirectory(prefix="edge-ravlm-eval-") as folder,
        Memory.open(Path(folder) / "memory", spaces, auto_compact=False) as memory,
    ):
        yield Shelf(subject, memory, notes)
