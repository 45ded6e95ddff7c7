"""Episodes: a small memory and a question about a picture, new each time, so that what is learnt is reading.

What an entry says is drawn for the episode, with facts of the thing and invented ones, often against what the weights
might remember; neighbours are found with the shipping encoder's own embeddings, so the mistakes of retrieval are real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.export.data import questions
from edge_ravlm.export.data.backgrounds import Half
from edge_ravlm.export.data.questions import Asked
from edge_ravlm.export.fusion.bank import Bank
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.memory.words import overlaps

Texts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Embeds texts: float32 [n, d] of unit length."""

_NAMING = ("meaning", "name", "caption")
"""Kinds of facts that are asked for most."""

_SEEN, _BESIDE, _HOPPED, _EXPLAINED = 5, 2, 4, 3
"""Entries: the nearest pictures, at most so many that the words bring; of two hops the nearest, and explanations."""

_CLOSED = 0.7
"""Share of the questions for a yes or no among those that a picture answers alone, without any memory."""

_WHOLE, _WORDED = 0.6, 8
"""Share of the memories that hold everything; entries that those that the words bring are the nearest of."""


@dataclass(frozen=True)
class Episode:
    """One question with all that is known.

    Attributes:
        question: a sentence.
        passages: the retrieved entries, best first; their ``text_cosine`` is still to be set.
        cells: float16 [cells, channels], the picture.
        answer: None where nothing answers the question.
        gold: which passage holds the answer; None where it is generated.
        fact: of that passage, the sentence that does.
        alike: of each passage, the sentence and its answer that answer the same question about another thing, or None.
        query: what the entries' texts are compared with; of a second hop, what the first one found.
        kind: what it trains, for the figures.
    """

    question: str
    passages: tuple[Passage, ...]
    cells: NDArray[np.float16]
    answer: str | None
    gold: int | None
    fact: str
    query: str
    kind: str
    alike: tuple[tuple[str, str] | None, ...]


@dataclass(frozen=True)
class Told:
    """Questions that a picture answers alone (easy-VQA): text, answer and number of the picture.

    Attributes:
        questions: all of them.
        cells: float16 [pictures, cells, channels].
        asked: float16 [pictures, dim].
    """

    questions: Sequence[tuple[str, str, int]]
    cells: NDArray[np.float16]
    asked: NDArray[np.float16]


@dataclass(frozen=True)
class Shelf:
    """A bank, and what of it is asked about and remembered.

    Attributes:
        bank: things with their scenes.
        weight: how often it is drawn from, relative to the others.
        asked: int64 [n], rows of the things that questions are about.
        remembered: int64 [m], rows of all that a memory may hold.
    """

    bank: Bank
    weight: float
    asked: NDArray[np.int64]
    remembered: NDArray[np.int64]


@dataclass(frozen=True)
class _Near:
    """What a memory finds.

    Attributes:
        rows: of the nearest pictures, best first.
        others: of some that are in the memory too.
        vectors: float32 [dim] of each of them, as remembered.
        query: float32 [dim].
        cells: float16 [cells, channels], of the picture that is asked about.
    """

    rows: Sequence[int]
    others: Sequence[int]
    vectors: Mapping[int, NDArray[np.float32]]
    query: NDArray[np.float32]
    cells: NDArray[np.float16]

    def passage(self, row: int, text: str) -> Passage:
        """A row's entry, as it is read."""
        vector = self.vectors[row]
        return Passage(text, float(vector @ self.query), vector * self.query)


class Episodes:
    """Draws episodes.

    Args:
        shelves: training things.
        texts: the text encoder that ships: what a question's words find is often wrong, and has to be told apart.
        told: questions without a memory, or None.
        half: that invented words are of.
        share_told: how often one of ``told`` is drawn.
    """

    def __init__(
        self,
        shelves: Sequence[Shelf],
        texts: Texts,
        told: Told | None = None,
        half: Half = "train",
        share_told: float = 0.3,
    ) -> None:
        self._shelves, self._texts_of = shelves, texts
        weights = np.array([shelf.weight for shelf in shelves], float)
        self._weights = weights / weights.sum()
        self._told, self._half = told, half
        self._share_told = share_told if told is not None else 0.0
        closed = [] if told is None else [answer in ("yes", "no") for _, answer, _ in told.questions]
        parts = ([row for row, is_closed in enumerate(closed) if is_closed is part] for part in (True, False))
        self._groups = [part for part in parts if part]
        self.dim = int(shelves[0].bank.taught.shape[2])

    def alone(self, rng: np.random.Generator) -> Episode:
        """One question that a picture answers alone, without any memory, mostly with yes or no.

        That takes all that the other questions take, and comparing what is seen with what is asked as well.
        """
        found = self._told_one(0 if rng.random() < _CLOSED else -1, rng)
        return self._without_memory(*found, ())

    def draw(self, rng: np.random.Generator) -> Episode:
        """One episode."""
        if rng.random() < self._share_told:
            return self._picture_alone(rng)
        kind = rng.choice(["reading", "removed", "silent", "hops", "texts"], p=[0.57, 0.15, 0.12, 0.1, 0.06])
        shelf = self._shelves[int(rng.choice(len(self._shelves), p=self._weights))]
        if kind == "texts":
            return self._texts(shelf, rng)
        return self._hops(shelf, rng) if kind == "hops" else self._reading(shelf, rng, str(kind))

    # -- kinds -------------------------------------------------------------------------------------------------

    def _reading(self, shelf: Shelf, rng: np.random.Generator, kind: str) -> Episode:
        bank, thing = shelf.bank, int(rng.choice(shelf.asked))
        facts = self._facts(bank, thing, rng)
        wanted = facts[_favoured(facts, rng)]
        near = self._near(shelf, thing, rng, kind == "removed")
        if kind == "removed" and rng.random() < 0.15:
            near = replace(near, rows=[], others=[])  # nothing at all was taught
        passages, alike = list[Passage](), list[tuple[str, str] | None]()
        gold: int | None = None
        for row in near.rows:
            if row == thing:
                text, wanted = questions.told(wanted, facts, rng, silent=kind == "silent")
                gold = len(passages)
                alike.append(None if wanted.answer is None else (wanted.fact, wanted.answer))
            else:
                text, other = self._other(bank, row, wanted, rng)
                alike.append(other)
            passages.append(near.passage(row, text))
        for row, text, other in self._worded(bank, near.others, wanted, rng):
            passages.append(near.passage(row, text))
            alike.append(other)
        has_answer = gold is not None and wanted.answer is not None
        return Episode(
            wanted.question,
            tuple(passages),
            near.cells,
            wanted.answer if has_answer else None,
            gold if has_answer else None,
            wanted.fact if has_answer else "",
            wanted.question,
            kind if has_answer or kind != "reading" else "missed",
            tuple(alike),
        )

    def _worded(
        self, bank: Bank, rows: Sequence[int], wanted: Asked, rng: np.random.Generator
    ) -> list[tuple[int, str, tuple[str, str] | None]]:
        """Of entries about other things those that the question's words bring: row, text, see ``alike``."""
        if not rows:
            return []
        told = [(row, *self._other(bank, row, wanted, rng)) for row in rows]
        vectors = self._texts_of([wanted.question, *(text for _, text, _ in told)])
        return [told[place] for place in np.argsort(-(vectors[1:] @ vectors[0]))[: int(rng.integers(_BESIDE + 1))]]

    def _hops(self, shelf: Shelf, rng: np.random.Generator) -> Episode:
        """What is seen tells a code; what the code means stands in another entry, if it does."""
        bank, thing = shelf.bank, int(rng.choice(shelf.asked))
        near = self._near(shelf, thing, rng, False)
        if near.rows[0] != thing:  # the second hop follows the nearest picture
            return self._hops(shelf, rng)
        rows, cells = near.rows[:_HOPPED], near.cells
        answers = [self._facts(bank, row, rng)[0].answer or "" for row in rows]
        its = "sign" if hasattr(bank.things[0], "meaning") else "thing"
        pairs = [questions.hops(answer, rng, self._half, its) for answer in answers]
        gold, mine = 0, pairs[0]
        strangers = rng.choice(shelf.remembered, size=int(rng.integers(4, 24)))
        foreign = [
            questions.hops(self._facts(bank, int(row), rng)[0].answer or "", rng, self._half, its) for row in strangers
        ]
        explained = [pair.explained for pair in foreign]
        passages = [near.passage(row, pair.shown) for row, pair in zip(rows, pairs, strict=True)]
        # The question's own words bring explanations too, but not of what is seen.
        beside = foreign[: int(rng.integers(_BESIDE + 1))]
        passages += [Passage(pair.explained) for pair in beside]
        kind = str(rng.choice(["code", "one hop", "two hops", "unexplained"], p=[0.25, 0.15, 0.45, 0.15]))
        if kind == "code":
            asked = mine.code_question
            codes = (*((pair.shown, pair.code) for pair in pairs), *((pair.explained, pair.code) for pair in beside))
            return Episode(asked, tuple(passages), cells, mine.code, gold, mine.shown, asked, kind, codes)
        alike = [None] * len(pairs) + [(pair.explained, pair.answer) for pair in beside]
        if kind == "one hop":
            return Episode(mine.question, tuple(passages), cells, None, None, "", mine.question, kind, tuple(alike))
        others = [row for row in range(len(pairs)) if row != gold]
        chosen = [int(row) for row in rng.permutation(others)[: _EXPLAINED - (kind == "two hops")]]
        places = [int(row) for row in rng.permutation([*chosen, *([gold] if kind == "two hops" else [])])]
        told = [pairs[row].explained for row in places]
        shared = overlaps(mine.shown, [*told, *explained])  # what is rare shows among many
        place = len(passages) + places.index(gold) if kind == "two hops" else None
        alike += [(pairs[row].explained, pairs[row].answer) for row in places]
        passages += [Passage(text, second_hop=True, overlap=share) for text, share in zip(told, shared, strict=False)]
        return Episode(
            mine.question,
            tuple(passages),
            cells,
            mine.answer if place is not None else None,
            place,
            mine.explained if place is not None else "",
            mine.shown,
            kind,
            tuple(alike),
        )

    def _texts(self, shelf: Shelf, rng: np.random.Generator) -> Episode:
        """Entries without pictures, about which a question says what it means."""
        bank, many = shelf.bank, int(rng.integers(2, _SEEN + 1))
        thing = int(rng.choice(shelf.asked))
        rows = [thing, *(int(row) for row in rng.permutation(shelf.remembered)[:many] if row != thing)]
        facts = self._facts(bank, rows[0], rng, named=1.0)
        sure = [fact for fact in facts if bank.things[rows[0]].sentence.split(" ", 1)[-1] in fact.question]
        if not sure:
            return self._reading(shelf, rng, "reading")
        wanted = sure[int(rng.integers(len(sure)))]
        text, wanted = questions.told(wanted, facts, rng)
        assert wanted.answer is not None
        told = [(text, (wanted.fact, wanted.answer)), *(self._other(bank, row, wanted, rng) for row in rows[1:])]
        said = [f"{bank.things[row].sentence}: {text}" for row, (text, _) in zip(rows, told, strict=True)]
        order = [int(row) for row in rng.permutation(len(said))]
        cells = bank.cells[rows[int(rng.integers(len(rows)))], 0]
        if rng.random() < 0.5:  # a question without a picture
            cells = np.zeros_like(cells)
        passages = tuple(Passage(said[row]) for row in order)
        gold = order.index(0)
        asked, alike = wanted.question, tuple(told[row][1] for row in order)
        return Episode(asked, passages, cells, wanted.answer, gold, wanted.fact, asked, "texts", alike)

    def _picture_alone(self, rng: np.random.Generator) -> Episode:
        # Three of four questions want a yes or no, which needs all that the other ones teach: as many of each.
        question, answer, picture = self._told_one(int(rng.integers(len(self._groups))), rng)
        assert self._told is not None
        passages: list[Passage] = []
        if rng.random() < 0.4:
            shelf = self._shelves[int(rng.integers(len(self._shelves)))]
            bank, query = shelf.bank, self._told.asked[picture].astype(np.float32)
            rows = rng.choice(shelf.remembered, size=64)
            vectors = bank.taught[rows, int(rng.integers(bank.taught.shape[1]))].astype(np.float32)
            cosines = vectors @ query
            for place in np.argsort(-cosines)[: int(rng.integers(1, _SEEN + 1))]:
                facts = self._facts(bank, int(rows[place]), rng)
                text, _ = questions.told(facts[int(rng.integers(len(facts)))], facts, rng)
                passages.append(Passage(text, float(cosines[place]), vectors[place] * query))
        return self._without_memory(question, answer, picture, passages)

    def _told_one(self, group: int, rng: np.random.Generator) -> tuple[str, str, int]:
        """Of ``Told.questions``, those for a yes or no first; of the only group where there is but one."""
        assert self._told is not None
        rows = self._groups[group]
        return self._told.questions[rows[int(rng.integers(len(rows)))]]

    def _without_memory(self, question: str, answer: str, picture: int, passages: Sequence[Passage]) -> Episode:
        assert self._told is not None
        cells, nowhere = self._told.cells[picture], (None,) * len(passages)
        return Episode(question, tuple(passages), cells, answer, None, "", question, "picture", nowhere)

    # -- their parts -------------------------------------------------------------------------------------------

    def _near(self, shelf: Shelf, thing: int, rng: np.random.Generator, removed: bool) -> _Near:
        """What a memory of one scene a thing finds for another scene of this one."""
        bank, count = shelf.bank, len(shelf.remembered)
        views = bank.taught.shape[1]
        # Mostly all of them: among few the right one leads by far, which teaches nothing.
        size = count if rng.random() < _WHOLE else int(np.exp(rng.uniform(np.log(2), np.log(count))))
        rows = rng.permutation(shelf.remembered)[:size]
        if removed:  # whatever says the same is gone as well
            same = bank.things[thing].sentence
            rows = np.array([row for row in rows if bank.things[row].sentence != same], np.int64)
        elif thing not in rows:
            rows = np.append(rows, thing)
        if not len(rows):
            rows = np.array([(thing + 1) % len(bank.things)])
        asked, kept = rng.permutation(views)[:2]
        at = rng.integers(views, size=len(rows))
        at[rows == thing] = kept
        others = bank.taught[rng.choice(shelf.remembered, size=_TAKEN_FOR), rng.integers(views)].astype(np.float32)
        query = _blurred(bank.asked[thing, asked].astype(np.float32), others, rng)
        vectors = bank.taught[rows, at].astype(np.float32)
        order = np.argsort(-(vectors @ query))
        best, rest = np.split(order, [int(rng.integers(3, _SEEN + 1))])
        others = rng.permutation(rest)[:_WORDED]
        known = {int(rows[place]): vectors[place] for place in (*best, *others)}
        chosen, beside = ([int(rows[place]) for place in part] for part in (best, others))
        return _Near(chosen, beside, known, query, bank.cells[thing, asked])

    def _facts(self, bank: Bank, thing: int, rng: np.random.Generator, named: float = 0.0) -> list[Asked]:
        """Questions about a thing; now and then an own fact says something else than the weights know."""
        facts = questions.asked(bank.things[thing], rng, self._half, named)
        return [
            fact.edited(questions.replacement(fact.kind, rng, self._half)) if rng.random() < 0.4 else fact
            for fact in facts
        ]

    def _other(
        self, bank: Bank, row: int, wanted: Asked, rng: np.random.Generator
    ) -> tuple[str, tuple[str, str] | None]:
        """What another thing's entry says, mostly a fact of the kind that is asked for as well; see ``alike``."""
        facts = self._facts(bank, row, rng)
        alike = [fact for fact in facts if fact.kind == wanted.kind]
        first = alike[0] if alike and rng.random() < 0.7 else facts[int(rng.integers(len(facts)))]
        text, _ = questions.told(first, facts, rng)
        there = [fact for fact in alike if fact.answer is not None and fact.fact.casefold() in text.casefold()]
        return text, (there[0].fact, there[0].answer or "") if there else None


def _blurred(query: NDArray[np.float32], others: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Mostly nearer to what looks like it, and further from everything: the encoder knows what it was trained on best.

    Noise in all directions alone would hardly change who is the nearest.

    Args:
        query: float32 [dim].
        others: float32 [n, dim], some of what might be taken for it.
        rng: draws.
    """
    if rng.random() < _CLEAR:
        return query
    chances = np.exp(_NEARER * (others @ query))
    first, second = rng.choice(len(others), size=2, p=chances / chances.sum())
    noise = rng.standard_normal(len(query)).astype(np.float32)
    noise *= rng.uniform(0, 0.6) / np.linalg.norm(noise)
    moved = query + noise + rng.uniform(0, 0.4) * others[first] + rng.uniform(0, 0.4) * others[second]
    return np.asarray(moved / np.linalg.norm(moved), np.float32)


_CLEAR, _NEARER, _TAKEN_FOR = 0.3, 8.0, 48
"""Share of the pictures that are seen as they are; how much likelier alike ones are mixed in; of so many."""


def _favoured(facts: Sequence[Asked], rng: np.random.Generator) -> int:
    """One of the facts; what a thing is gets asked most."""
    weights = np.array([3.0 if fact.kind in _NAMING else 1.0 for fact in facts])
    return int(rng.choice(len(facts), p=weights / weights.sum()))
