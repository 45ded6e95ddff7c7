"""What a suite found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

UNREAD = "Reading was not judged: the bundle has no decoder."

MEANINGS: Mapping[str, str] = {
    "show_once_recall1": "the thing shown once is the nearest picture",
    "show_once_recall5": "it is among the five nearest",
    "average_precision": "ranking of all entries that mean the same, mean over scenes",
    "reading_accuracy": "right answers where the right entry was retrieved",
    "reading_accuracy_nearest": "right answers where it was the nearest of them",
    "follows_edit": "answers follow when the nearest entry, the right one, says something else",
    "follows_edit_unseen_words": "the same with invented words and numbers that no training saw",
    "abstains_when_removed": "abstains when the entry, and all of the same meaning, are gone",
    "false_abstention": "abstains although the right entry was retrieved",
    "end_to_end_heldout": "retrieves and answers right, all questions",
    "f1": "words shared with the right answer, all questions",
    "end_to_end_no_memory": "the same decoder with an empty memory",
    "vote_answers": "shown once, asked what it is: the vote gives an answer",
    "vote_right": "the answers that the vote gives are right",
    "vote_abstains_when_removed": "the vote abstains when the entry, and all of the same meaning, are gone",
    "retrieved_vote_only": "the nearest picture's stored answer, without a decoder",
    "question_only": "retrieves by the question and reads, without the picture",
    "majority": "always the commonest answer of the question's kind",
    "bleu_describe": "BLEU-4 of asked descriptions",
    "aurc": "area under the risk-coverage curve; smaller is better",
    "ece": "expected calibration error, 15 bins; smaller is better",
    "one_hop": "reads a picture's code",
    "two_hop": "reads what the code means from another entry, searching twice",
    "two_hop_searching_once": "the same without the second search",
    "two_hop_not_searching": "the same without any search",
    "decode_ms_p50": "reading and 8 tokens, 2 threads, milliseconds",
    "text_to_text_recall1": "a question that names a thing finds what is said of it first",
    "text_to_text_recall1_vectors_alone": "the same without looking for rare words",
    "text_to_image_recall10": "a caption's picture is among the ten nearest",
    "exact_match": "right answers on the official test part",
}
"""What each figure says, by its name or what its name begins with."""


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


def meaning(figure: str) -> str:
    """What a figure says, in words."""
    stem, _, part = figure.rpartition("_")
    return MEANINGS.get(figure) or f"{MEANINGS[stem]} ({part})"
