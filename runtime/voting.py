"""The vote: which of the taught answers does this picture support, and how surely. Pure functions over vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.manifest import Answering

Vectors = NDArray[np.float32]

ALIKE = 0.5
"""Cosine to the nearest memory from which on a picture most likely shows something that was taught. Of 800 signs and
objects that training knows, each shown once, 98 in 100 reached it; not shown themselves, five among ten others, and 27
among fifty."""

FEW = 3
"""Most answers that a glimpse has to tell apart: the states of one view, on which it is fitted. With twenty objects
that training knows, each shown once, 6 answers of 1,000 were wrong after glimpses, and 2 after full first looks; with
400 of them 52 and 30."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """The memories that may answer one question, prepared once and voted on for every frame.

    Attributes:
        ids: int64 [n], entry ids.
        labels: int64 [n], which answer each entry supports; 0 <= label < ``answers``.
        vectors: float32 [n, d], unit length.
        centre: float32 [d], the mean of the answers' means: what all of them show alike.
        centred: float32 [n, d], vectors minus centre, unit length.
        firsts, seconds: int64 [answers], where the best and the second best entry of each answer stand once all entries
            are sorted by answer, best first; the same place for an answer with one entry.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    vectors: Vectors
    centre: Vectors
    centred: Vectors
    firsts: NDArray[np.int64]
    seconds: NDArray[np.int64]

    @classmethod
    def of(cls, ids: Sequence[int], answers: Sequence[str], vectors: Vectors) -> Ballot:
        """Prepare; entries with equal ``answers`` support the same one."""
        names, labels = np.unique(np.asarray(answers, dtype=object), return_inverse=True)
        means = [vectors[labels == label].mean(axis=0) for label in range(len(names))]
        # With one answer there is nothing to tell apart, and its own mean would cancel what it shows.
        centre = np.mean(means, axis=0) if len(names) > 1 else np.zeros(vectors.shape[1], np.float32)
        centred = unit(vectors - centre)
        ends = np.bincount(labels).cumsum()
        firsts = np.concatenate([[0], ends[:-1]])
        return cls(
            np.asarray(ids, np.int64),
            labels.astype(np.int64),
            vectors,
            centre.astype(np.float32),
            centred.astype(np.float32),
            firsts,
            np.minimum(firsts + 1, ends - 1),
        )

    @property
    def answers(self) -> int:
        """How many different answers there are."""
        return len(self.firsts)


@dataclass(frozen=True, slots=True)
class Vote:
    """The outcome for one picture.

    Attributes:
        winner: position in the ballot of the nearest entry that supports the winning answer.
        confidence: probability of the winning answer, calibrated at export.
        nearest: cosine to the nearest entry of the ballot, before centring.
        scores: float32 [n], the cosine of every entry.
    """

    winner: int
    confidence: float
    nearest: float
    scores: Vectors


def vote(query: Vectors, ballot: Ballot, rules: Answering) -> Vote:
    """Vote of the entries, each weighted by its centred cosine to the picture.

    Entries of a fixed camera share most of what they show; subtracting their common centre leaves what differs
    (Wang et al. 2019, "SimpleShot", arXiv:1911.04623). Each answer speaks through its two best entries, so that an
    answer taught often does not win for that alone, and one lucky neighbour weighs less than two that agree.

    The confidence is a logistic of the winner's lead over the strongest other answer, so that it does not fall with
    every further thing that was taught. With their mean taken out, n answers that have nothing in common lie at cosines
    of -1 / (n - 1) to each other: two can be twice as far apart as many, so leads are scaled to those of two. Below
    ``ALIKE`` a lead counts the less the less the picture is like any memory: what was never taught leads by chance.

    Args:
        query: float32 [d], unit length.
        ballot: at least one entry.
        rules: the bundle's constants.
    """
    scores = np.vecdot(ballot.vectors, query)  # row by row, so that equal memories tie: with a matrix they need not
    nearest = float(scores.max())
    if ballot.answers == 1:
        return Vote(int(scores.argmax()), _closeness(nearest, rules), nearest, scores)
    centred = ballot.centred @ unit(query - ballot.centre)
    order = np.lexsort((-centred, ballot.labels))
    best, second = order[ballot.firsts], order[ballot.seconds]
    support = ((centred[best] + centred[second]) / 2).astype(np.float64)
    label = int(support.argmax())
    lead = float(support[label] - np.partition(support, -2)[-2]) * 2 * (ballot.answers - 1) / ballot.answers
    likeness = min(1.0, max(0.0, nearest / ALIKE))
    sure = 1 / (1 + math.exp(-rules.sharpness * lead * likeness))
    return Vote(int(best[label]), sure, nearest, scores)


def is_sure(outcome: Vote, rules: Answering, *, glimpse: bool = False) -> bool:
    """Whether a first look that brought this, or a mere glimpse, needs no closer one."""
    above = rules.glimpse_above if glimpse else rules.sure_above
    return outcome.nearest >= rules.image_floor and outcome.confidence >= max(above, rules.abstain_below)


def unit(vectors: Vectors) -> Vectors:
    """Scale to unit length along the last axis; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def _closeness(nearest: float, rules: Answering) -> float:
    """With a single answer taught, confidence is how far above the floor its nearest picture lies."""
    return float(np.clip((nearest - rules.image_floor) / max(1e-6, 1 - rules.image_floor), 0.0, 1.0) ** 0.5)
