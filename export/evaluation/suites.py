"""The suites by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from edge_ravlm.console import Bar
from edge_ravlm.errors import UsageError
from edge_ravlm.export.align.fit import clean
from edge_ravlm.export.data import datasets, scenes
from edge_ravlm.export.data.datasets import EasyVqa, Part
from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.questions import asked, told
from edge_ravlm.export.data.scenes import Stamp
from edge_ravlm.export.evaluation.outcome import UNREAD, Extent, Outcome
from edge_ravlm.export.evaluation.scores import exact_match
from edge_ravlm.export.evaluation.shelf import Note, shelved
from edge_ravlm.export.evaluation.show_once import Showing, judge, said
from edge_ravlm.export.evaluation.subject import Episode, Reply, Subject, cells_of, on_all_cores
from edge_ravlm.frames import read_image

SUITES = ("traffic", "home", "easy-vqa")


def run(suite: str, subject: Subject, extent: Extent, bar: Bar) -> Outcome:
    """Judge on one of ``SUITES``; fetches what is not in the cache.

    Raises:
        UsageError: there is no such suite.
        DataError: a package cannot be had, or is not what it was.
    """
    if suite == "traffic":
        return traffic(subject, extent, bar)
    if suite == "home":
        return home(subject, extent, bar)
    if suite == "easy-vqa":
        return easy_vqa(subject, datasets.easy_vqa(), extent, bar)
    raise UsageError(f"suite '{suite}'", expected=", ".join(SUITES), got="another name", do="name one of them")


def traffic(subject: Subject, extent: Extent, bar: Bar) -> Outcome:
    """All signs in the memory; questions about the held-out meanings."""
    with bar("making the signs", None):
        signs = datasets.traffic()
    unseen, seen = signs.held_out.backgrounds, signs.train.backgrounds
    every = (*signs.train.things, *signs.held_out.things, *signs.designs.things)
    others = {"designs": signs.designs, "seen": Part(signs.train.things, unseen)}
    return judge("traffic", subject, Showing(Part(every, seen), signs.held_out, others), extent, bar)


def home(subject: Subject, extent: Extent, bar: Bar) -> Outcome:
    """All objects in the memory; questions about the held-out ones."""
    with bar("making the objects", None):
        objects = datasets.home()
    every = (*objects.train.things, *objects.held_out.things)
    others = {"seen": Part(objects.train.things, objects.held_out.backgrounds)}
    outcome = judge(
        "home", subject, Showing(Part(every, objects.train.backgrounds), objects.held_out, others), extent, bar
    )
    with_words, vectors_alone, named, names = text_to_text(subject, every, objects.held_out.things, bar)
    found = {"text_to_text_recall1": with_words, "text_to_text_recall1_vectors_alone": vectors_alone}
    outcome = replace(
        outcome,
        figures={**outcome.figures, **found},
        counts={**outcome.counts, "named": named, "names": names},
        floors={**outcome.floors, **dict.fromkeys(found, 1 / names)},
    )
    if not subject.has_meaning:
        return outcome
    train, unseen = ([stamp for stamp in half if stamp.is_photo] for half in scenes.stamps())
    recall, captions, gallery = text_to_image(subject, train, unseen, bar)
    return replace(
        outcome,
        figures={**outcome.figures, "text_to_image_recall10": recall},
        counts={**outcome.counts, "captions": captions, "gallery": gallery},
        floors={**outcome.floors, "text_to_image_recall10": min(1.0, 10 / gallery)},
    )


def text_to_text(
    subject: Subject, things: Sequence[Piece], heldout: Sequence[Piece], bar: Bar
) -> tuple[float, float, int, int]:
    """How often a question that names a thing finds first what the memory says of it, among one entry a name.

    Args:
        subject: whose text encoder is judged.
        things: the memory speaks of them.
        heldout: those that are asked about.
        bar: opens progress bars.

    Returns:
        recall@1 as the runtime searches, with rare words; recall@1 by vectors alone; the questions, the names.
    """
    rng = np.random.default_rng(0)
    asked_about = {thing.title for thing in heldout}
    notes, queries = list[Note](), list[tuple[str, int]]()
    for title, thing in {thing.title: thing for thing in things}.items():
        facts = asked(thing, rng, "held_out", 1.0)
        named = [fact for fact in facts if title in fact.question]
        wanted = named[int(rng.integers(len(named)))]
        if title in asked_about:
            queries.append((wanted.question, len(notes)))
        notes.append(Note(f"{thing.sentence}: {told(wanted, facts, rng)[0]}", ""))
    with bar("searching by names", None), shelved(subject, notes) as shelf:
        hits = [[shelf.spoken_of(question, words=words) == row for words in (True, False)] for question, row in queries]
    with_words, vectors_alone = np.mean(hits, axis=0).tolist()
    return with_words, vectors_alone, len(queries), len(notes)


def text_to_image(
    subject: Subject, train: Sequence[Stamp], unseen: Sequence[Stamp], bar: Bar
) -> tuple[float, int, int]:
    """How often a caption finds its cut-out among the ten nearest, by the pictures' place among texts.

    Args:
        subject: a bundle with a meaning space.
        train: stamps that may have been learnt from; they are in the gallery only.
        unseen: stamps whose captions are asked for.
        bar: opens progress bars.

    Returns:
        recall@10, the captions asked, the pictures in the gallery. A picture with an equal caption counts too.
    """
    gallery = [stamp for stamp in (*unseen, *train) if stamp.caption]
    captions = [stamp.caption for stamp in unseen if stamp.caption]
    looks = subject.see(len(gallery), lambda row: clean(gallery[row].pixels), bar, "looking at the stamps", taught=True)
    meanings = np.stack([look.meaning for look in looks if look.meaning is not None])
    nearest = np.argsort(-(subject.words.embed(captions) @ meanings.T), axis=1, kind="stable")[:, :10]
    hits = [caption in {gallery[row].caption for row in rows} for caption, rows in zip(captions, nearest, strict=True)]
    return float(np.mean(hits)), len(captions), len(gallery)


def easy_vqa(subject: Subject, questions: EasyVqa, extent: Extent, bar: Bar) -> Outcome:
    """The official test questions, answered from the picture alone."""
    every = list(dict.fromkeys(question.image for question in questions.held_out))
    order = np.random.default_rng(0).permutation(len(every))[: extent.pictures]
    images = {every[int(index)]: place for place, index in enumerate(order)}
    wanted = [question for question in questions.held_out if question.image in images]
    common = Counter(question.answer for question in questions.train).most_common(1)[0][0]
    figures = {"majority": float(np.mean([question.answer == common for question in wanted]))}
    counts = {"questions": len(wanted), "pictures": len(images)}
    reader = subject.reader
    if reader is None:
        return Outcome("easy-vqa", subject.name, figures, counts, remarks=[UNREAD])
    paths = list(images)
    looks = subject.see(len(paths), lambda place: read_image(paths[place]).pixels, bar, "looking at the pictures")

    @cache
    def blind(text: str) -> Reply:
        return reader.answer(Episode(text, [], np.zeros_like(cells_of(looks[0]))))

    replies = on_all_cores(
        lambda question: reader.answer(Episode(question.text, [], cells_of(looks[images[question.image]]))),
        wanted,
        bar,
        "answering",
    )
    rights = [
        (
            exact_match(said(reader, reply), question.answer),
            exact_match(said(reader, blind(question.text)), question.answer),
        )
        for question, reply in zip(wanted, replies, strict=True)
    ]
    match, question_only = np.mean(rights, axis=0).tolist()
    return Outcome(
        "easy-vqa", subject.name, {"exact_match": match, "question_only": question_only, **figures}, counts,
        {"exact_match": figures["majority"]},
    )  # fmt: skip
