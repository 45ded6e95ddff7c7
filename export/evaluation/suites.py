"""The suites by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from edge_ravlm.errors import UsageError
from edge_ravlm.export.align.fit import clean
from edge_ravlm.export.data import datasets, scenes
from edge_ravlm.export.data.datasets import EasyVqa, Part
from edge_ravlm.export.data.scenes import Stamp
from edge_ravlm.export.evaluation.outcome import UNREAD, Extent, Outcome
from edge_ravlm.export.evaluation.scores import exact_match
from edge_ravlm.export.evaluation.show_once import Showing, judge, said
from edge_ravlm.export.evaluation.subject import Bar, Episode, Reply, Subject, cells_of, on_all_cores
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
    if not subject.has_meaning:
        return outcome
    train, unseen = ([stamp for stamp in half if stamp.is_photo] for half in scenes.stamps())
    recall, asked, gallery = text_to_image(subject, train, unseen, bar)
    return replace(
        outcome,
        figures={**outcome.figures, "text_to_image_recall10": recall},
        counts={**outcome.counts, "captions": asked, "gallery": gallery},
        floors={**outcome.floors, "text_to_image_recall10": min(1.0, 10 / gallery)},
    )


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
    asked = [stamp.caption for stamp in unseen if stamp.caption]
    looks = subject.see(len(gallery), lambda row: clean(gallery[row].pixels), bar, "looking at the stamps", taught=True)
    meanings = np.stack([look.meaning for look in looks if look.meaning is not None])
    nearest = np.argsort(-(subject.words.embed(asked) @ meanings.T), axis=1, kind="stable")[:, :10]
    hits = [caption in {gallery[row].caption for row in rows} for caption, rows in zip(asked, nearest, strict=True)]
    return float(np.mean(hits)), len(asked), len(gallery)


def easy_vqa(subject: Subject, questions: EasyVqa, extent: Extent, bar: Bar) -> Outcome:
    """The official test questions, answered from the picture alone."""
    every = list(dict.fromkeys(question.image for question in questions.held_out))
    order = np.random.default_rng(0).permutation(len(every))[: extent.pictures]
    images = {every[int(index)]: place for place, index in enumerate(order)}
    asked = [question for question in questions.held_out if question.image in images]
    common = Counter(question.answer for question in questions.train).most_common(1)[0][0]
    figures = {"majority": float(np.mean([question.answer == common for question in asked]))}
    counts = {"questions": len(asked), "pictures": len(images)}
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
        asked,
        bar,
        "answering",
    )
    rights = [
        (
            exact_match(said(reader, reply), question.answer),
            exact_match(said(reader, blind(question.text)), question.answer),
        )
        for question, reply in zip(asked, replies, strict=True)
    ]
    match, question_only = np.mean(rights, axis=0).tolist()
    return Outcome(
        "easy-vqa", subject.name, {"exact_match": match, "question_only": question_only, **figures}, counts,
        {"exact_match": figures["majority"]},
    )  # fmt: skip
