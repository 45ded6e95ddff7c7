"""The suite on readers whose answers are known: every figure can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge_ravlm.export.data.questions import Asked
from edge_ravlm.export.data.signs import Sign
from edge_ravlm.export.evaluation import show_once
from edge_ravlm.export.evaluation.outcome import UNREAD, Extent, Outcome
from edge_ravlm.export.evaluation.show_once import judge
from edge_ravlm.export.evaluation.subject import Subject

from .conftest import SHOWING, Fake, copied, read, silent, subject

pytestmark = pytest.mark.export

EXTENT = Extent(scenes=4, others=10, questions=8, hops=4, pictures=2)


def judged(of: Subject) -> Outcome:
    return judge("traffic", of, SHOWING, EXTENT, silent)


def test_sharp_eyes_find_everything_and_nothing_is_read_without_a_decoder(worded: None) -> None:
    outcome = judged(subject())
    assert {name: value for name, value in outcome.figures.items() if name != "average_precision"} == {
        "show_once_recall1_heldout": 1,
        "show_once_recall5_heldout": 1,
        "show_once_recall1_seen": 1,
        "show_once_recall5_seen": 1,
    }
    assert outcome.floors["show_once_recall1_heldout"] == 0.1
    assert outcome.floors["show_once_recall5_heldout"] == 0.5
    assert outcome.counts == {"scenes_heldout": 8, "scenes_seen": 2}
    assert outcome.remarks == [UNREAD]
    assert outcome.confidences is None


def test_ranks_and_precision_are_counted_where_all_looks_alike(worded: None) -> None:
    figures = judged(subject(sharp=False)).figures  # equal scores come in the order of the rows
    assert figures["show_once_recall1_heldout"] == 0.5  # row 0 is the first, row 5 the sixth
    assert figures["show_once_recall5_heldout"] == 0.5
    assert figures["show_once_recall1_seen"] == 0  # rows 3 and 4
    assert figures["show_once_recall5_seen"] == 1
    # Rows 0 and 1 mean the same, and so do 4 and 5.
    assert figures["average_precision"] == pytest.approx(((1 + 1) / 2 + (1 / 5 + 2 / 6) / 2) / 2)


def test_one_who_reads_well_gets_everything(worded: None) -> None:
    outcome = judged(subject(Fake(read)))
    expected = dict.fromkeys(
        ("reading_accuracy", "follows_edit", "follows_edit_unseen_words", "abstains_when_removed"), 1.0
    )
    expected |= dict.fromkeys(("end_to_end_heldout", "f1", "one_hop", "two_hop"), 1.0)
    expected |= dict.fromkeys(("false_abstention", "end_to_end_no_memory", "question_only", "ece"), 0.0)
    assert {name: outcome.figures[name] for name in expected} == expected
    # 8 right answers, surely, then 8 that nothing answers, all of equal confidence.
    assert outcome.figures["aurc"] == pytest.approx(np.mean([*[0] * 8, *(k / (8 + k) for k in range(1, 9))]))
    assert outcome.figures["decode_ms_p50"] == 8
    assert outcome.counts["questions"] == 8


def test_descriptions_are_scored_where_they_are_asked_for(worded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_once, "CAPTIONED", 1.0)
    assert judged(subject(Fake(read))).figures["bleu_describe"] == pytest.approx(1)
    assert judged(subject(Fake(lambda episode: "something else"))).figures["bleu_describe"] == 0


def test_the_second_search_is_what_finds_the_explanation(worded: None) -> None:
    def only_by_hopping(episode: object) -> str | None:
        return read(episode) if any(one.second_hop for one in episode.passages) else None  # type: ignore[attr-defined]

    figures = judged(subject(Fake(only_by_hopping, entries=1))).figures
    assert figures["two_hop_searching_once"] == figures["one_hop"] == 0


def test_one_who_always_abstains_is_right_only_where_nothing_answers(worded: None) -> None:
    figures = judged(subject(Fake(lambda episode: None))).figures
    assert figures["abstains_when_removed"] == figures["false_abstention"] == 1
    for name in ("reading_accuracy", "follows_edit", "end_to_end_heldout", "f1", "two_hop", "ece"):
        assert figures[name] == 0
    assert figures["aurc"] == 1


def test_one_who_copies_passage_1_follows_edits_and_never_abstains(
    worded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(thing: Sign, rng: np.random.Generator, half: str) -> list[Asked]:
        return [Asked("caption", thing.sentence, thing.sentence, "caption")]

    monkeypatch.setattr(show_once, "asked", bare)
    figures = judged(subject(Fake(copied))).figures
    for name in ("reading_accuracy", "end_to_end_heldout", "retrieved_vote_only", "follows_edit", "f1"):
        assert figures[name] == 1
    for name in ("abstains_when_removed", "false_abstention", "end_to_end_no_memory"):
        assert figures[name] == 0
    # As sure as can be of 8 right answers and of 8 wrong ones.
    assert figures["aurc"] == figures["ece"] == 0.5


def test_edits_and_reading_count_only_what_was_retrieved(worded: None) -> None:
    outcome = judged(subject(Fake(read, entries=1), sharp=False))
    # Row 0 comes first whatever is shown: half of the questions are about row 5, and read wrong or by the text.
    assert outcome.figures["follows_edit"] == 1
    assert outcome.figures["end_to_end_heldout"] < outcome.figures["reading_accuracy"]


def test_baselines_follow_from_the_memory(worded: None) -> None:
    outcome = judged(subject(Fake(read)))
    # The nearest entry's stored answer is what its first fact says; the commonest category is the only one.
    assert 0 < outcome.figures["retrieved_vote_only"] < 1
    assert 0 < outcome.figures["majority"] < 1


def test_equal_seeds_give_equal_figures(worded: None) -> None:
    assert judged(subject(Fake(read))).summary() == judged(subject(Fake(read))).summary()


def test_real_wordings_run_through(worded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    figures = judged(subject(Fake(copied))).figures
    assert figures["show_once_recall1_heldout"] == 1
    assert figures["abstains_when_removed"] == 0
