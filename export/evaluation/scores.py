"""How answers, rankings and confidences are scored. All figures are fractions of 1."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15
"""Of the calibration error and its diagram."""

_ARTICLES = frozenset({"a", "an", "the"})


def normalised(text: str) -> str:
    """The text in small letters, without articles, spare spaces and a final full stop.

    As SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250), but inner punctuation stays: ``R-417`` is not
    ``R417``.
    """
    words = text.casefold().strip().removesuffix(".").split()
    return " ".join(word for word in words if word not in _ARTICLES) or " ".join(words)


def exact_match(said: str | None, wanted: str) -> bool:
    """Whether the answer is the wanted one; None is no answer."""
    return said is not None and normalised(said) == normalised(wanted)


def token_f1(said: str | None, wanted: str) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it stands there (SQuAD)."""
    ours, theirs = normalised(said or "").split(), normalised(wanted).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU-4 of all answers together, one reference each (Papineni et al. 2002), on words and signs in small letters.

    Not smoothed: 0 where no four words in a row are right.
    """
    pairs = [(_words(ours), _words(theirs)) for ours, theirs in zip(said, wanted, strict=True)]
    logs = 0.0
    for n in range(1, 5):
        right = sum(sum((_grams(ours, n) & _grams(theirs, n)).values()) for ours, theirs in pairs)
        made = sum(max(0, len(ours) - n + 1) for ours, _ in pairs)
        if not right:
            return 0.0
        logs += math.log(right / made) / 4
    length, reference = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return math.exp(logs + min(0.0, 1 - reference / length))


def average_precision(ranked: Sequence[int], relevant: frozenset[int]) -> float:
    """Mean of the precision at each relevant entry's rank; one that is not in the ranking counts 0."""
    hits, total = 0, 0.0
    for rank, id_ in enumerate(ranked, 1):
        if id_ in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant) if relevant else 0.0


def risk_coverage(confidence: Floats, right: NDArray[np.bool_]) -> Floats:
    """Share of wrong answers among the k most confident ones, float64 [n] for k = 1 to n (Geifman & El-Yaniv 2017).

    Answers of equal confidence cannot be told apart: each counts as their mean.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(confidence[order], return_inverse=True)
    wrong = 1.0 - right[order]
    means = np.bincount(group, wrong) / np.maximum(1, np.bincount(group))
    return np.asarray(np.cumsum(means[group]) / np.arange(1, len(order) + 1), np.float64)


def aurc(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Area under the risk–coverage curve: the mean risk over all coverages; smaller is better."""
    return float(risk_coverage(confidence, right).mean())


def reliability(confidence: Floats, right: NDArray[np.bool_], bins: int = BINS) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right answers and number of answers in each of equally wide bins that has any."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    chosen = [place == number for number in range(bins) if (place == number).any()]
    return [(float(confidence[row].mean()), float(right[row].mean()), int(row.sum())) for row in chosen]


def calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): the bins' distances, weighed by their answers."""
    rows = reliability(confidence, right, bins)
    return sum(abs(told - was) * n for told, was, n in rows) / len(confidence)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[first : first + n]) for first in range(len(words) - n + 1))
