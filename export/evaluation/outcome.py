"""What a suite found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

UNREAD = "Reading was not judged: the bundle has no decoder."


@dataclass(frozen=True)
class Extent:
    """How much is judged.

    Attributes:
        scenes: of each held-out thing.
        others: scenes of other designs, and of things that were seen, each at most.
        questions: about the held-out things, at most; each is read in five ways.
        hops: questions that take two entries, at most.
        pictures: of the easy-VQA test part, at most.
    """

    scenes: int
    others: int
    questions: int
    hops: int
    pictures: int


FULL = Extent(scenes=4, others=300, questions=400, hops=200, pictures=1000)
QUICK = Extent(scenes=1, others=60, questions=60, hops=30, pictures=100)


@dataclass(frozen=True)
class Confidences:
    """Answers with how sure the decoder was of each, for the curves.

    Attributes:
        confidence: float64 [n], 0 to 1.
        right: bool [n]; where nothing answered the question no answer is.
    """

    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Figures of one suite.

    Attributes:
        suite: ``traffic``, ``home`` or ``easy-vqa``.
        subject: what was judged.
        figures: by name; fractions of 1, but for milliseconds.
        counts: of how many things the figures are means.
        floors: what guessing reaches, by the figure's name.
        confidences: None where nothing was read.
        remarks: sentences about what was left out.
    """

    suite: str
    subject: str
    figures: Mapping[str, float]
    counts: Mapping[str, int]
    floors: Mapping[str, float] = field(default_factory=dict)
    confidences: Confidences | None = None
    remarks: Sequence[str] = ()

    def summary(self) -> dict[str, object]:
        """All but the single confidences, for JSON."""
        return {
            "suite": self.suite,
            "subject": self.subject,
            **self.figures,
            "counts": self.counts,
            "floors": self.floors,
            "remarks": list(self.remarks),
        }
