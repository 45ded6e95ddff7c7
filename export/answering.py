"""The constants of the answering rules, fitted on the training half and reported on the held-out half.

Every constant is one threshold or one temperature; nothing here is learnt per user. What is fitted: which cosine is too
low to mean the same view, how sharply a vote turns into a probability (temperature scaling, Guo et al. 2017,
arXiv:1706.04599), below which probability to abstain, and the two cosines that decide what a memory talks about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.export.data.corpus import Topic
from edge_ravlm.export.evaluation.scores import calibration_error
from edge_ravlm.export.judging import Task
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.voting import Ballot, is_sure, vote

Vectors = NDArray[np.float32]
EmbedText = Callable[[Sequence[str]], Vectors]

LOST = 0.01
"""Share of good pictures or texts that a floor may reject: the floors are set at this quantile."""

RISK = 0.01
"""Share of wrong answers that is allowed among those given, as far as abstaining can bring it down."""

FOREIGN_KEPT = 0.25
"""Share of pictures of other views that may still be answered. Real light and weather change a view by more than
composed scenes do, and to an encoder that looks past backgrounds one empty view is much like another: the floor is only
as high as it has to be to tell most other views apart. At 0.05 it cost the demo a seventh of its answers."""

UNRELATED_KEPT = 0.25
"""Share of unrelated questions that may still find a memory. People word questions more freely than the texts that this
is fitted on, and silence costs them more than an answer whose evidence shows what it rests on."""

EVENS = 0.5
"""A guess between two answers: below it, the runtime always abstains."""

MOST_ABSTAINED = 0.03
"""Share of answerable pictures that may be sacrificed for it."""

SURE_LOSS = 0.002
"""Share of sure first looks, or glimpses, that may be wrong beyond those of which the closer look says something wrong
too."""


@dataclass(frozen=True)
class Looks:
    """What pictures that are asked about look like, float32 [n, d] each; see ``Embeds``."""

    asked: Vectors
    glanced: Vectors
    glimpsed: Vectors
    followed: Vectors


@dataclass(frozen=True)
class Seen:
    """A task's vectors.

    Attributes:
        ballot: the taught pictures; their labels are the states.
        own, truth: of the view's pictures, and int64 [n], their states.
        foreign: of the pictures of other views.
    """

    ballot: Ballot
    own: Looks
    truth: NDArray[np.int64]
    foreign: Looks


class Quality(msgspec.Struct, frozen=True):
    """How the fitted rules do on tasks they were not fitted on; fractions of 1.

    Attributes:
        accuracy: of the pictures asked about, abstentions counted as wrong.
        abstained: share of answerable pictures without an answer.
        wrong: share of answerable pictures with a wrong answer.
        foreign_abstained: share of pictures of other views without an answer.
        calibration_error: expected calibration error over ten bins of confidence.
        questions_answered: share of questions that find the memory that talks about their thing.
        unrelated_silenced: share of questions about other things that find none.
        siblings_joined: share of pairs of states of one thing that are taken for one topic.
        strangers_joined: share of pairs of different things that are.
        looked_closer: share of answerable pictures that a glimpse (without glimpses, the first look) was not sure of;
            the figures above count what is said after that.
    """

    accuracy: float
    abstained: float
    wrong: float
    foreign_abstained: float
    calibration_error: float
    questions_answered: float
    unrelated_silenced: float
    siblings_joined: float
    strangers_joined: float
    looked_closer: float


class Embeds(Protocol):
    """An image encoder as the runtime uses it; pictures uint8 [h, w, 3] BGR -> float32 [n, d]."""

    def studied(self, pictures: Sequence[Pixels], /) -> Vectors:
        """What is taught."""

    def asked(self, pictures: Sequence[Pixels], /) -> Vectors:
        """What is asked about."""

    def glanced(self, pictures: Sequence[Pixels], /) -> Vectors:
        """The same at first look; again the same where there is no closer one."""

    def glimpsed(self, pictures: Sequence[Pixels], /) -> Vectors:
        """The same at a glimpse; at first look where there is none."""

    def followed(self, pictures: Sequence[Pixels], /) -> Vectors:
        """The same at a glimpse and the closer look after it."""


def see(tasks: Sequence[Task], encoder: Embeds) -> list[Seen]:
    """Embed the tasks' pictures."""
    return [_see(task, encoder) for task in tasks]


def fit(tasks: Sequence[Seen], texts: TextPairs) -> Answering:
    """Fit the constants on tasks and texts that nothing is judged on."""
    start = Answering(image_floor=-1.0, text_floor=0.0, sibling_floor=0.0, sharpness=1.0, abstain_below=0.0)
    nearest = np.concatenate([_votes(task.own.asked, task, start)[2] for task in tasks])
    strange = np.concatenate([_votes(task.foreign.asked, task, start)[2] for task in tasks])
    image_floor = _floor(nearest, strange, FOREIGN_KEPT)
    sharpness = min(np.geomspace(2, 60, 40), key=lambda value: _surprise(tasks, float(value)))
    rules = msgspec.structs.replace(
        start,
        image_floor=image_floor,
        sharpness=round(float(sharpness), 2),
        text_floor=_floor(texts.related, texts.unrelated, UNRELATED_KEPT),
        sibling_floor=_split(texts.siblings, texts.strangers),
    )
    rules = msgspec.structs.replace(rules, abstain_below=_abstain_below(tasks, rules))
    firsts = {"sure_above": [t.own.glanced for t in tasks], "glimpse_above": [t.own.glimpsed for t in tasks]}
    return msgspec.structs.replace(rules, **{name: _sure_above(tasks, rules, first) for name, first in firsts.items()})


def judge(tasks: Sequence[Seen], texts: TextPairs, rules: Answering) -> Quality:
    """Apply the rules as the runtime does and count."""
    said = [(task, *_said(task.own, task, rules)) for task in tasks]
    rights = np.concatenate([labels == task.truth for task, labels, *_ in said])
    sures, given, closer = (np.concatenate(parts) for parts in list(zip(*said, strict=True))[2:])
    strange = np.concatenate([_said(task.foreign, task, rules)[2] for task in tasks])
    return Quality(
        accuracy=_share(rights & given),
        abstained=_share(~given),
        wrong=_share(~rights & given),
        foreign_abstained=_share(~strange),
        calibration_error=calibration_error(sures, rights, bins=10),
        questions_answered=_share(texts.related >= rules.text_floor),
        unrelated_silenced=_share(texts.unrelated < rules.text_floor),
        siblings_joined=_share(texts.siblings >= rules.sibling_floor),
        strangers_joined=_share(texts.strangers >= rules.sibling_floor),
        looked_closer=_share(closer),
    )


@dataclass(frozen=True)
class TextPairs:
    """Cosines between texts, float64 [n] each.

    Attributes:
        related: questions to the nearest memory on their own thing.
        unrelated: questions to the nearest of a dozen memories on other things.
        siblings: memories on different states of one thing.
        strangers: memories on different things.
    """

    related: NDArray[np.float64]
    unrelated: NDArray[np.float64]
    siblings: NDArray[np.float64]
    strangers: NDArray[np.float64]


def text_pairs(topics: Sequence[Topic], embed: EmbedText) -> TextPairs:
    """Measure how near questions and memories lie, with a small memory of other things around each."""
    rng = np.random.default_rng(0)
    said = [embed([state[0] for state in topic.states]) for topic in topics]
    related, unrelated, siblings, strangers = [], [], [], []
    for index, topic in enumerate(topics):
        questions = embed(topic.questions)
        others = rng.choice([i for i in range(len(topics)) if i != index], min(6, len(topics) - 1), replace=False)
        around = np.concatenate([said[int(i)] for i in others])
        related.append((questions @ said[index].T).max(1))
        unrelated.append((questions @ around.T).max(1))
        siblings.append(_upper(said[index] @ said[index].T))
        strangers.append((said[index] @ around.T).ravel())
    return TextPairs(*(np.concatenate(part).astype(np.float64) for part in (related, unrelated, siblings, strangers)))


def answers(task: Seen, rules: Answering) -> NDArray[np.int64]:
    """What is said of the view's pictures, then of those of other views: a state, or -1 for "I don't know"."""
    said = (_said(looks, task, rules) for looks in (task.own, task.foreign))
    return np.concatenate([np.where(given, labels, -1) for labels, _, given, _ in said])


def _see(task: Task, encoder: Embeds) -> Seen:
    taught = encoder.studied([picture for picture, _ in task.taught])
    states = [f"{state:03d}" for _, state in task.taught]  # ballots number their answers in sorted order
    truth = np.array([state for _, state in task.asked], np.int64)
    ballot = Ballot.of(range(len(states)), states, taught)
    own, foreign = (
        Looks(*(look(pictures) for look in (encoder.asked, encoder.glanced, encoder.glimpsed, encoder.followed)))
        for pictures in ([picture for picture, _ in task.asked], task.foreign)
    )
    return Seen(ballot, own, truth, foreign)


def _votes(
    queries: Vectors, task: Seen, rules: Answering
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Per query the winning state, its probability, and the cosine to the nearest taught picture."""
    votes = [vote(query, task.ballot, rules) for query in queries]
    labels = np.array([task.ballot.labels[v.winner] for v in votes], np.int64)
    return labels, np.array([v.confidence for v in votes]), np.array([v.nearest for v in votes])


def _graded(
    queries: Vectors, task: Seen, rules: Answering
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    labels, sures, nears = _votes(queries, task, rules)
    return labels == task.truth, sures, nears


def _said(
    looks: Looks, task: Seen, rules: Answering
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Per picture the state it is taken for, its probability, whether that is said, and whether a closer look was."""
    glimpse = rules.glimpse_above < 1
    at_first, after = (looks.glimpsed, looks.followed) if glimpse else (looks.glanced, looks.asked)
    votes = (vote(query, task.ballot, rules) for query in at_first)
    closer = np.array([not is_sure(one, rules, glimpse=glimpse) for one in votes], bool)
    labels, sures, nears = _votes(np.where(closer[:, None], after, at_first), task, rules)
    return labels, sures, (sures >= rules.abstain_below) & (nears >= rules.image_floor), closer


def _surprise(tasks: Sequence[Seen], sharpness: float) -> float:
    """Negative log-likelihood of right-or-wrong under the winners' probabilities."""
    rules = Answering(image_floor=-1.0, text_floor=0, sibling_floor=0, sharpness=sharpness, abstain_below=0)
    graded = [_graded(task.own.asked, task, rules) for task in tasks]
    right = np.concatenate([part[0] for part in graded])
    sure = np.concatenate([part[1] for part in graded]).clip(1e-6, 1 - 1e-6)
    return float(-np.where(right, np.log(sure), np.log(1 - sure)).mean())


def _abstain_below(tasks: Sequence[Seen], rules: Answering) -> float:
    """The lowest confidence at which at most RISK of the answers given are wrong, or MOST_ABSTAINED is reached."""
    graded = (_graded(task.own.asked, task, rules) for task in tasks)
    right, sure, _ = (np.concatenate(parts) for parts in zip(*graded, strict=True))
    most = float(np.quantile(sure, MOST_ABSTAINED))
    for threshold in np.arange(EVENS, max(EVENS, most) + 1e-9, 0.005):
        if _share(~right[sure >= threshold]) <= RISK:
            return round(float(threshold), 3)
    return math.floor(max(EVENS, most) * 1000) / 1000


def _sure_above(tasks: Sequence[Seen], rules: Answering, looks: Sequence[Vectors]) -> float:
    """The lowest confidence from which looks lose at most SURE_LOSS against closer ones; 1 if there is none.

    Args:
        tasks: to fit on.
        rules: without the answer.
        looks: of each task, float32 [n, d].
    """

    def wrong(looks: Sequence[Vectors]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Which get a wrong answer, and how sure of it one is; -1 where it is not given for want of likeness."""
        graded = (_graded(looked, task, rules) for looked, task in zip(looks, tasks, strict=True))
        right, sure, near = (np.concatenate(parts) for parts in zip(*graded, strict=True))
        sure = np.where(near >= rules.image_floor, sure, -1.0)
        return ~right & (sure >= rules.abstain_below), sure

    closer, _ = wrong([task.own.asked for task in tasks])
    first, sure = wrong(looks)
    for threshold in np.arange(max(EVENS, rules.abstain_below), 1.0, 0.005):
        chosen = sure >= threshold
        if chosen.any() and _share(first[chosen]) <= _share(closer[chosen]) + SURE_LOSS:
            return round(float(threshold), 3)
    return 1.0


def _floor(good: NDArray[np.float64], bad: NDArray[np.float64], kept: float) -> float:
    """The lowest floor that rejects all but ``kept`` of the bad, unless it would reject more than LOST of the good."""
    return round(min(float(np.quantile(good, LOST)), float(np.quantile(bad, 1 - kept))), 4)


def _split(high: NDArray[np.float64], low: NDArray[np.float64]) -> float:
    """The middle of the gap between the two, or the threshold of the highest balanced accuracy where there is none."""
    bottom, top = float(np.quantile(high, LOST)), float(np.quantile(low, 1 - LOST))
    if top < bottom:
        return round((bottom + top) / 2, 4)
    candidates = np.unique(np.concatenate([high, low]))
    return round(float(max(candidates, key=lambda c: (high >= c).mean() + (low < c).mean())), 4)


def _upper(square: NDArray[np.float32]) -> NDArray[np.float32]:
    return square[np.triu_indices(len(square), 1)]


def _share(true: NDArray[np.bool_]) -> float:
    return float(true.mean()) if true.size else 0.0
