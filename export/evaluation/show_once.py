"""Show everything once, ask about what nothing was trained on: finding, reading, abstaining, joining two entries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from edge_ravlm.console import Bar
from edge_ravlm.export.data.datasets import Part, Thing, ThingT
from edge_ravlm.export.data.questions import Asked, Hops, asked, entry, hops, replacement, together
from edge_ravlm.export.data.signs import Sign
from edge_ravlm.export.evaluation.outcome import UNREAD, Confidences, Extent, Outcome
from edge_ravlm.export.evaluation.scores import (
    aurc,
    average_precision,
    bleu,
    calibration_error,
    exact_match,
    token_f1,
)
from edge_ravlm.export.evaluation.shelf import Found, Note, Shelf, shelved
from edge_ravlm.export.evaluation.subject import (
    Episode,
    Floats,
    Look,
    Reader,
    Reply,
    Subject,
    cells_of,
    on_all_cores,
)
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.questions import IMAGE_ARM
from edge_ravlm.runtime.voting import Ballot, vote

CAPTIONED = 0.25
"""Share of the entries that hold a description instead of a name or meaning."""

TIMED = 32
"""Questions that the decoder's time is the median of."""


@dataclass(frozen=True)
class Showing(Generic[ThingT]):
    """What is shown and asked about.

    Attributes:
        memory: everything, on backgrounds that were trained on; each thing is remembered once.
        heldout: what nothing was trained on, on backgrounds that nothing was trained on.
        others: further things to look for, by the ending of their figures' names.
    """

    memory: Part[ThingT]
    heldout: Part[ThingT]
    others: Mapping[str, Part[ThingT]]


@dataclass(frozen=True)
class View:
    """A scene of a thing, which entry ``row`` is about."""

    row: int
    look: Look


@dataclass(frozen=True)
class Told:
    """What an entry says.

    Attributes:
        facts: in the order of their choice; the first says what it is.
        style: seed of their order and punctuation.
    """

    facts: Sequence[Asked]
    style: tuple[int, ...]

    @property
    def text(self) -> str:
        """The entry's text."""
        return entry(self.facts, np.random.default_rng(self.style))

    def edited(self, fact: Asked, answer: str) -> str:
        """The text in which that fact has another answer, else the same."""
        facts = [one.edited(answer) if one == fact else one for one in self.facts]
        return entry(facts, np.random.default_rng(self.style))


@dataclass(frozen=True)
class Query:
    """A question about a view.

    Attributes:
        view: of the thing.
        fact: what is asked, and the answer.
        other: an answer that the fact is given instead.
        invented: whether that is of words that no training saw; else it is another entry's.
    """

    view: View
    fact: Asked
    other: str
    invented: bool


@dataclass(frozen=True)
class Read:
    """What the decoder made of one query.

    Attributes:
        found: the rows that it had to read.
        nearest: the row whose picture is most alike.
        whole: from the memory as it is.
        edited: after the right entry was edited; None unless it is the nearest.
        removed: after the right entry, and all of the same meaning, were forgotten.
        blind: without the picture.
        alone: without any memory.
    """

    found: frozenset[int]
    nearest: int
    whole: Reply
    edited: Reply | None
    removed: Reply
    blind: Reply
    alone: Reply


def judge(
    suite: str, subject: Subject, showing: Showing[ThingT], extent: Extent, bar: Bar, *, seed: int = 0
) -> Outcome:
    """Run the suite.

    Args:
        suite: its name.
        subject: what is judged.
        showing: what on.
        extent: how much.
        bar: opens progress bars.
        seed: of all scenes, wordings and choices.
    """
    things = showing.memory.things
    told = [_told(thing, seed, row) for row, thing in enumerate(things)]
    shown = _see(subject, showing.memory, range(len(things)), (seed, 0), bar, "showing everything once", taught=True)
    pictures = [look.embedding for look in shown]
    del shown  # the cells of a thousand pictures, which nothing reads
    notes = [Note(text.text, text.facts[0].answer or "", row) for text, row in zip(told, pictures, strict=True)]
    views = _views(subject, showing, extent, bar, seed)
    siblings = _siblings(things)
    with shelved(subject, notes) as shelf:
        figures, counts = _ranked(shelf, views, siblings, bar)
        floors = {name: k / len(notes) for name in figures for k in (1, 5) if f"recall{k}_" in name}
        figures |= _voted(views["heldout"], pictures, siblings, subject.rules)
        if subject.reader is None:
            return Outcome(suite, subject.name, figures, counts, floors, remarks=[UNREAD])
        queries = _queries(views["heldout"], told, extent.questions, seed)
        read = _read(subject.reader, shelf, told, queries, siblings, bar)
        reading, confidences = _judged(subject.reader, notes, told, queries, read)
        counts["questions"] = len(queries)
        timed = [_episode(shelf, query) for query in queries[:TIMED]]
    figures |= reading
    if isinstance(things[0], Sign):
        chosen = views["heldout"][:: max(1, len(views["heldout"]) // extent.hops)]
        figures |= _hopped(subject, subject.reader, things, pictures, chosen, bar, seed)
        counts["hops"] = len(chosen)
    with bar("timing the decoder alone", None):
        figures["decode_ms_p50"] = subject.reader.milliseconds(timed)
    return Outcome(suite, subject.name, figures, counts, floors, confidences)


def _told(thing: Thing, seed: int, row: int) -> Told:
    rng = np.random.default_rng((seed, 1, row))
    facts = {fact.kind: fact for fact in asked(thing, rng, "held_out")}
    caption = facts["caption"]
    main = caption if rng.random() < CAPTIONED else facts.get("meaning") or facts.get("name") or caption
    return Told(together(main, list(facts.values()), rng), (seed, 2, row))


def _see(
    subject: Subject,
    part: Part[ThingT],
    rows: Sequence[int],
    seed: tuple[int, ...],
    bar: Bar,
    what: str,
    *,
    taught: bool = False,
) -> list[Look]:
    """A scene for each of the rows; a row that comes again is seen in another scene."""
    return subject.see(
        len(rows),
        lambda place: part.scene(rows[place], np.random.default_rng((*seed, place))),
        bar,
        what,
        taught=taught,
    )


def _views(subject: Subject, showing: Showing[ThingT], extent: Extent, bar: Bar, seed: int) -> dict[str, list[View]]:
    """Scenes by part, each part in an order that any piece of represents the whole."""
    known = {thing.name: row for row, thing in enumerate(showing.memory.things)}
    views = {}
    for number, (name, part) in enumerate([("heldout", showing.heldout), *showing.others.items()], start=3):
        order = np.random.default_rng((seed, number)).permutation(len(part.things)).tolist()
        rows = order * extent.scenes if name == "heldout" else order[: extent.others]
        looks = _see(subject, part, rows, (seed, number), bar, f"looking at scenes: {name}")
        views[name] = [View(known[part.things[row].name], look) for row, look in zip(rows, looks, strict=True)]
    return views


def _siblings(things: Sequence[Thing]) -> list[frozenset[int]]:
    """For each thing the rows of all that mean the same, its own too."""
    rows = defaultdict(list)
    for row, thing in enumerate(things):
        rows[thing.sentence].append(row)
    return [frozenset(rows[thing.sentence]) for thing in things]


def _ranked(
    shelf: Shelf, views: Mapping[str, Sequence[View]], siblings: Sequence[frozenset[int]], bar: Bar
) -> tuple[dict[str, float], dict[str, int]]:
    figures: dict[str, float] = {}
    for name, seen in views.items():
        if not seen:
            continue
        orders = on_all_cores(lambda view: shelf.ranked(view.look), seen, bar, f"searching: {name}")
        ranks = np.array([order.index(view.row) for view, order in zip(seen, orders, strict=True)])
        figures |= {f"show_once_recall{k}_{name}": float((ranks < k).mean()) for k in (1, 5)}
        if name == "heldout":
            precisions = [
                average_precision(order, siblings[view.row]) for view, order in zip(seen, orders, strict=True)
            ]
            figures["average_precision"] = float(np.mean(precisions))
    return figures, {f"scenes_{name}": len(seen) for name, seen in views.items()}


def _voted(
    views: Sequence[View], pictures: Sequence[Floats], siblings: Sequence[frozenset[int]], rules: Answering
) -> dict[str, float]:
    """What the vote says where nothing but the picture tells which entries it is about, as of "what is this?"."""
    shown = np.stack(pictures)

    def said_of(view: View, gone: frozenset[int] = frozenset()) -> int | None:
        """A row; None where it abstains."""
        likeness = shown @ view.look.embedding
        likeness[list(gone)] = -1
        near = np.argsort(-likeness, kind="stable")[: min(IMAGE_ARM, len(shown) - len(gone))].tolist()
        if not near:
            return None
        ballot = Ballot.of(near, [str(min(siblings[row])) for row in near], shown[near])
        outcome = vote(view.look.embedding, ballot, rules)
        sure = outcome.nearest >= rules.image_floor and outcome.confidence >= rules.abstain_below
        return near[outcome.winner] if sure else None

    said_all = [(view, said_of(view)) for view in views]
    answered = [row in siblings[view.row] for view, row in said_all if row is not None]
    found = {
        "vote_answers": len(answered) / len(views),
        "vote_abstains_when_removed": float(np.mean([said_of(view, siblings[view.row]) is None for view in views])),
    }
    return {**found, "vote_right": float(np.mean(answered))} if answered else found


def _queries(views: Sequence[View], told: Sequence[Told], most: int, seed: int) -> list[Query]:
    """One question per view about any fact of the entry that is about it."""
    rng = np.random.default_rng((seed, 100))
    by_kind = _answers(told)
    queries = []
    for number, view in enumerate(views[:most]):
        facts = told[view.row].facts
        fact = facts[int(rng.integers(len(facts)))]
        others = [answer for answer in by_kind[fact.kind] if not exact_match(answer, fact.answer or "")]
        invented = number % 2 == 0 or not others
        other = replacement(fact.kind, rng, "held_out") if invented else others[int(rng.integers(len(others)))]
        queries.append(Query(view, fact, other, invented))
    return queries


def _answers(told: Sequence[Told]) -> dict[str, Counter[str]]:
    """How often each answer of each kind is in the memory."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text in told:
        for fact in text.facts:
            answers[fact.kind][fact.answer or ""] += 1
    return answers


def _episode(shelf: Shelf, query: Query) -> Episode:
    found = shelf.found(query.fact.question, query.view.look)
    return Episode(query.fact.question, _passages(found), cells_of(query.view.look))


def _passages(found: Sequence[Found]) -> list[Passage]:
    return [one.passage for one in found]


def _read(
    reader: Reader,
    shelf: Shelf,
    told: Sequence[Told],
    queries: Sequence[Query],
    siblings: Sequence[frozenset[int]],
    bar: Bar,
) -> list[Read]:
    def read(query: Query) -> Read:
        question, look, row = query.fact.question, query.view.look, query.view.row
        cells = cells_of(look)
        found = shelf.found(question, look)
        removed = shelf.found(question, look, without=siblings[row])
        edited = None
        if found[0].row == row:
            text = told[row].edited(query.fact, query.other)
            edited = reader.answer(Episode(question, shelf.retold(found, row, text, question), cells))
        return Read(
            frozenset(one.row for one in found),
            found[0].row,
            reader.answer(Episode(question, _passages(found), cells)),
            edited,
            reader.answer(Episode(question, _passages(removed), cells)),
            reader.answer(Episode(question, _passages(shelf.found(question, None)), np.zeros_like(cells))),
            reader.answer(Episode(question, [], cells)),
        )

    return on_all_cores(read, queries, bar, "reading")


def _judged(
    reader: Reader, notes: Sequence[Note], told: Sequence[Told], queries: Sequence[Query], read: Sequence[Read]
) -> tuple[dict[str, float], Confidences]:
    def right(reply: Reply, answer: str) -> bool:
        return exact_match(said(reader, reply), answer)

    common = {kind: answers.most_common(1)[0][0] for kind, answers in _answers(told).items()}
    pairs = [(query, one, query.fact.answer or "") for query, one in zip(queries, read, strict=True)]
    there = [(one, answer) for query, one, answer in pairs if query.view.row in one.found]
    nearest = [(one, answer) for query, one, answer in pairs if query.view.row == one.nearest]
    edits = [(query, right(one.edited, query.other)) for query, one, _ in pairs if one.edited is not None]
    described = [
        (said(reader, one.whole) or "", answer) for query, one, answer in pairs if query.fact.kind == "caption"
    ]
    figures: dict[str, list[float]] = {
        "reading_accuracy": [right(one.whole, answer) for one, answer in there],
        "reading_accuracy_nearest": [right(one.whole, answer) for one, answer in nearest],
        "follows_edit": [followed for _, followed in edits],
        "follows_edit_unseen_words": [followed for query, followed in edits if query.invented],
        "abstains_when_removed": [said(reader, one.removed) is None for _, one, _ in pairs],
        "false_abstention": [said(reader, one.whole) is None for one, _ in there],
        "end_to_end_heldout": [right(one.whole, answer) for _, one, answer in pairs],
        "f1": [token_f1(said(reader, one.whole), answer) for _, one, answer in pairs],
        "end_to_end_no_memory": [right(one.alone, answer) for _, one, answer in pairs],
        "retrieved_vote_only": [exact_match(notes[one.nearest].answer, answer) for _, one, answer in pairs],
        "question_only": [right(one.blind, answer) for _, one, answer in pairs],
        "majority": [exact_match(common[query.fact.kind], answer) for query, _, answer in pairs],
    }
    means = {name: float(np.mean(values)) for name, values in figures.items() if values}
    if described:
        means["bleu_describe"] = bleu([text for text, _ in described], [answer for _, answer in described])
    forced = [(one.whole.confidence, exact_match(one.whole.text, answer)) for _, one, answer in pairs]
    forced += [(one.removed.confidence, False) for _, one, _ in pairs]
    confidences = Confidences(np.array([sure for sure, _ in forced]), np.array([was for _, was in forced]))
    means["aurc"] = aurc(confidences.confidence, confidences.right)
    means["ece"] = calibration_error(confidences.confidence, confidences.right)
    return means, confidences


def _hopped(
    subject: Subject,
    reader: Reader,
    things: Sequence[Thing],
    pictures: Sequence[Floats],
    views: Sequence[View],
    bar: Bar,
    seed: int,
) -> dict[str, float]:
    """Signs of which the memory knows but a code, and texts that explain the codes."""
    rows = sorted({view.row for view in views})
    known: dict[int, Hops] = {}
    for row in rows:
        thing = things[row]
        assert isinstance(thing, Sign)
        known[row] = hops(thing.meaning, np.random.default_rng((seed, 101, row)), "held_out")
    notes = [Note(known[row].shown, known[row].code, pictures[row]) for row in rows]
    notes += [Note(known[row].explained, known[row].answer) for row in rows]
    with shelved(subject, notes) as shelf:

        def answered(view: View) -> tuple[bool, ...]:
            hop, cells = known[view.row], cells_of(view.look)

            def right(question: str, searches: int, answer: str) -> bool:
                found = shelf.found(question, view.look, hops=searches) if searches else []
                return exact_match(said(reader, reader.answer(Episode(question, _passages(found), cells))), answer)

            return (
                right(hop.code_question, 1, hop.code),
                right(hop.question, 2, hop.answer),
                right(hop.question, 1, hop.answer),
                right(hop.question, 0, hop.answer),
            )

        shares = np.mean(on_all_cores(answered, views, bar, "reading two entries"), axis=0).tolist()
    names = ("one_hop", "two_hop", "two_hop_searching_once", "two_hop_not_searching")
    return dict(zip(names, shares, strict=True))


def said(reader: Reader, reply: Reply) -> str | None:
    """The answer that the runtime would give; None where it abstains."""
    return None if reply.abstention >= reader.abstain_above else reply.text
