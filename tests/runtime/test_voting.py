"""The vote, as properties of any memories and any picture."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.voting import Ballot, Vote, unit, vote

RULES = Answering(image_floor=0.3, text_floor=0.3, sibling_floor=0.5, sharpness=10.0, abstain_below=0.6)
DIM = 12

Vectors = NDArray[np.float32]
Election = tuple[list[int], list[str], Vectors, Vectors]


@st.composite
def elections(draw: st.DrawFn, once_each: bool = False) -> Election:
    """Ids, answers, vectors and a picture, all directions different."""
    labels = draw(st.lists(st.integers(0, 3), min_size=1 + once_each, max_size=12, unique=once_each))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = unit(rng.standard_normal((len(labels) + 1, DIM)).astype(np.float32))
    return list(range(10, 10 + len(labels))), [f"answer {label}" for label in labels], rows[:-1], rows[-1]


def elect(ids: list[int], answers: list[str], vectors: Vectors, query: Vectors) -> tuple[str, Vote]:
    ballot = Ballot.of(ids, answers, vectors)
    outcome = vote(query, ballot, RULES)
    return answers[outcome.winner], outcome


@given(elections())
def test_a_vote_is_one_of_the_answers_with_a_probability(election: Election) -> None:
    _, answers, vectors, query = election
    text, outcome = elect(*election)
    assert text in answers
    assert 0 <= outcome.confidence <= 1
    if len(set(answers)) > 1:
        assert outcome.confidence >= 0.5, "no other answer is likelier"
    np.testing.assert_allclose(outcome.scores, vectors @ query, atol=1e-6)
    assert outcome.nearest == pytest.approx(float((vectors @ query).max()), abs=1e-6)


@given(elections(), st.randoms(use_true_random=False))
def test_the_order_of_teaching_does_not_matter(election: Election, random: np.random.Generator) -> None:
    ids, answers, vectors, query = election
    order = list(range(len(ids)))
    random.shuffle(order)
    text, outcome = elect(*election)
    shuffled, again = elect([ids[i] for i in order], [answers[i] for i in order], vectors[order], query)
    assert again.confidence == pytest.approx(outcome.confidence, abs=1e-3)
    assert shuffled == text or outcome.confidence < 0.51
    if shuffled == text:
        assert order[again.winner] == outcome.winner


@given(elections())
def test_what_the_answers_are_called_does_not_matter(election: Election) -> None:
    ids, answers, vectors, query = election
    _, outcome = elect(*election)
    _, again = elect(ids, [f"{9 - int(answer[-1])} oder so" for answer in answers], vectors, query)
    assert again.confidence == pytest.approx(outcome.confidence, abs=1e-3)
    assert again.winner == outcome.winner or outcome.confidence < 0.51


@given(elections(), st.integers(2, 5))
def test_an_answer_shown_once_gains_nothing_from_being_shown_the_same_picture_again(
    election: Election, times: int
) -> None:
    ids, answers, vectors, query = election
    once = [i for i, answer in enumerate(answers) if answers.count(answer) == 1]
    assume(once)
    again = [*range(len(ids)), *once * (times - 1)]
    text, outcome = elect(*election)
    repeated, more = elect(list(range(len(again))), [answers[i] for i in again], vectors[again], query)
    assert more.confidence == pytest.approx(outcome.confidence, abs=1e-3)
    assert repeated == text or outcome.confidence < 0.51


@pytest.mark.parametrize("often", [1, 5, 60])
def test_an_answer_taught_often_does_not_win_for_that_alone(often: int) -> None:
    rng = np.random.default_rng(often)
    closed, opened = np.eye(DIM, dtype=np.float32)[:2]
    usual = unit(closed + 0.1 * rng.standard_normal((often, DIM)).astype(np.float32))
    vectors = np.vstack([usual, opened])
    answers = ["closed"] * often + ["open"]
    query = unit(opened + 0.2 * rng.standard_normal(DIM).astype(np.float32))
    text, outcome = elect(list(range(len(answers))), answers, vectors, query)
    assert text == "open"
    assert outcome.confidence > 0.9


@given(elections(once_each=True))
def test_a_picture_that_was_taught_is_at_least_as_sure_as_any_other(election: Election) -> None:
    ids, answers, vectors, _ = election
    for i, vector in enumerate(vectors):
        text, outcome = elect(ids, answers, vectors, vector)
        assert outcome.winner == i
        assert outcome.nearest == pytest.approx(1.0, abs=1e-5)
        assert text == answers[i]


def test_what_all_memories_show_alike_is_taken_out() -> None:
    """The fixed camera: 99 % of every picture is the same yard."""
    yard, gate, leaf = np.eye(DIM, dtype=np.float32)[:3]
    vectors = unit(np.stack([yard + 0.05 * gate, yard - 0.05 * gate]))
    text, outcome = elect([1, 2], ["open", "closed"], vectors, unit(yard + 0.05 * gate + 0.01 * leaf))
    assert (vectors[0] @ vectors[1]) > 0.99
    assert text == "open"
    assert outcome.confidence > 0.99


def test_two_memories_that_agree_weigh_more_than_a_lucky_one_of_two() -> None:
    a, b, c, d = np.eye(DIM, dtype=np.float32)[:4]
    query = unit(a + b)
    answers = ["yes", "yes", "no", "no"]
    vectors = np.stack([unit(query + 0.6 * c), unit(query + 0.6 * d), unit(query + 0.3 * (c - d)), unit(-query + c)])
    ballot = Ballot.of([1, 2, 3, 4], answers, vectors)
    outcome = vote(query, ballot, RULES)
    assert int(outcome.scores.argmax()) == 2, "the nearest alone would say no"
    assert answers[outcome.winner] == "yes"


@pytest.mark.parametrize("things", [2, 5, 50, 1000])
def test_what_was_shown_once_is_recognised_among_any_number_of_things(things: int) -> None:
    rng = np.random.default_rng(things)
    vectors = unit(rng.standard_normal((things, 256)).astype(np.float32))
    query = unit(vectors[0] + unit(rng.standard_normal(256).astype(np.float32)))  # a cosine of about 0.7
    text, outcome = elect(list(range(things)), [str(n) for n in range(things)], vectors, query)
    assert text == "0"
    assert outcome.confidence > 0.9


def test_a_lead_counts_less_where_the_picture_is_like_nothing_that_was_taught() -> None:
    a, b, far = np.eye(DIM, dtype=np.float32)[:3]
    sure = [
        elect([1, 2], ["open", "closed"], np.stack([a, b]), unit(near * a + far))[1].confidence
        for near in (0.1, 0.3, 0.6, 3.0)
    ]
    assert sure == sorted(sure)
    assert 0.5 < sure[0] < 0.6
    assert sure[-1] > 0.99


def test_halfway_between_two_answers_nobody_can_tell() -> None:
    a, b = np.eye(DIM, dtype=np.float32)[:2]
    _, outcome = elect([1, 2], ["open", "closed"], np.stack([a, b]), unit(a + b))
    assert outcome.confidence == pytest.approx(0.5, abs=1e-3)


@given(st.floats(-1, 1))
def test_with_one_answer_confidence_grows_with_likeness_from_the_floor_up(likeness: float) -> None:
    a, b = np.eye(DIM, dtype=np.float32)[:2]
    here, nearer = (np.float32(c) * a + np.float32(np.sqrt(1 - c * c)) * b for c in (likeness, (likeness + 1) / 2))
    _, outcome = elect([1, 2], ["open", "open"], np.stack([a, a]), here)
    _, closer = elect([1, 2], ["open", "open"], np.stack([a, a]), nearer)
    assert outcome.confidence <= closer.confidence
    assert (outcome.confidence == 0) == (outcome.nearest <= RULES.image_floor)


def test_sharper_rules_are_surer_and_never_change_the_answer() -> None:
    ids, answers = [1, 2, 3], ["open", "closed", "broken"]
    rows = unit(np.random.default_rng(4).standard_normal((4, DIM)).astype(np.float32))
    ballot = Ballot.of(ids, answers, rows[:3])
    soft, sharp = (vote(rows[3], ballot, msgspec.structs.replace(RULES, sharpness=s)) for s in (1.0, 30.0))
    assert soft.winner == sharp.winner
    assert soft.confidence < sharp.confidence


def test_a_picture_exactly_at_the_centre_and_rows_without_direction_give_no_nan() -> None:
    a = np.eye(DIM, dtype=np.float32)[0]
    same = Ballot.of([1, 2], ["open", "closed"], np.stack([a, a]))
    outcome = vote(a, same, RULES)
    assert outcome.confidence == pytest.approx(0.5)
    assert np.isfinite(outcome.scores).all()
    np.testing.assert_array_equal(unit(np.zeros((2, DIM), np.float32)), 0)


def test_a_ballot_keeps_what_it_was_given() -> None:
    rows = unit(np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32))
    ballot = Ballot.of([7, 5, 6], ["b", "a", "b"], rows)
    assert ballot.ids.tolist() == [7, 5, 6]
    assert ballot.labels.tolist() == [1, 0, 1]
    assert ballot.answers == 2
    np.testing.assert_allclose(ballot.centre, (rows[1] + (rows[0] + rows[2]) / 2) / 2, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ballot.centred, axis=1), 1, atol=1e-6)
