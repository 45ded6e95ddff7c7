"""The answering constants: fitted where the data says, and honest about what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_ravlm.export import answering
from edge_ravlm.export.answering import FOREIGN_KEPT, Looks, Seen, TextPairs, fit, judge, text_pairs
from edge_ravlm.export.data.corpus import topics
from edge_ravlm.export.judging import Task
from edge_ravlm.runtime.voting import Ballot, unit

pytestmark = pytest.mark.export

DIM = 32


def task(rng: np.random.Generator, noise: float, blur: float | None = None) -> Seen:
    """Two states of a view, blurred by noise, at first look ``blur`` times as much; other views lie elsewhere.

    Glimpses are first looks here.
    """
    view, *states = unit(rng.normal(size=(3, DIM)))
    centres = [unit(view + 0.6 * state) for state in states]

    def draw(state: int, times: float = 1.0) -> np.ndarray:
        return unit(centres[state] + times * noise * rng.normal(size=DIM) / np.sqrt(DIM))

    taught = [(draw(s), s) for s in (0, 1) for _ in range(4)]
    truth = np.array([0, 1] * 6)
    names = [f"{s:03d}" for _, s in taught]
    ballot = Ballot.of(range(8), names, np.float32([vector for vector, _ in taught]))
    asked, foreign = np.float32([draw(int(s)) for s in truth]), np.float32(unit(rng.normal(size=(2, DIM))))
    glanced = asked if blur is None else np.float32([draw(int(s), blur) for s in truth])
    return Seen(ballot, Looks(asked, glanced, glanced, asked), truth, Looks(*[foreign] * 4))


def texts(rng: np.random.Generator) -> TextPairs:
    draw = lambda centre: np.clip(rng.normal(centre, 0.08, 400), -1, 1)  # noqa: E731
    return TextPairs(related=draw(0.75), unrelated=draw(0.3), siblings=draw(0.8), strangers=draw(0.25))


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_fitted_rules_hold_on_tasks_they_have_not_seen(noise: float) -> None:
    rng = np.random.default_rng(0)
    rules = fit([task(rng, noise) for _ in range(30)], texts(rng))
    quality = judge([task(rng, noise) for _ in range(30)], texts(rng), rules)
    assert quality.accuracy + quality.abstained + quality.wrong == pytest.approx(1)
    assert quality.wrong < 0.03
    assert quality.abstained < 0.08
    assert quality.foreign_abstained > 0.95 - FOREIGN_KEPT
    assert quality.calibration_error < 0.1
    assert quality.questions_answered > 0.95
    assert quality.siblings_joined > 0.95
    assert quality.strangers_joined < 0.05


def test_a_question_is_rather_answered_than_met_with_silence() -> None:
    rng = np.random.default_rng(0)
    rules = fit([task(rng, 0.3)], texts(rng))
    assert np.quantile(texts(rng).unrelated, 0.7) < rules.text_floor < np.quantile(texts(rng).related, 0.02)


@pytest.mark.parametrize(("name", "off"), [("sure_above", {"glimpse_above": 1.0}), ("glimpse_above", {})])
def test_a_first_look_or_a_glimpse_is_enough_where_it_is_sure(name: str, off: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    rules = msgspec.structs.replace(fit([task(rng, 0.5, blur=2.0) for _ in range(60)], texts(rng)), **off)
    assert rules.abstain_below <= getattr(rules, name) < 1
    tasks = [task(rng, 0.5, blur=2.0) for _ in range(60)]
    found = judge(tasks, texts(rng), rules)
    always = judge(tasks, texts(rng), msgspec.structs.replace(rules, sure_above=1.0, glimpse_above=1.0))
    assert always.looked_closer == 1.0
    assert 0.1 < found.looked_closer < 0.9
    assert found.wrong <= always.wrong + 2 * answering.SURE_LOSS
    unsure = judge(tasks, texts(rng), msgspec.structs.replace(rules, **{name: 0.0}))
    assert unsure.wrong > found.wrong, "without the threshold blurred looks would be believed"


def test_looks_that_are_never_right_are_never_enough() -> None:
    rng = np.random.default_rng(0)
    tasks = [task(rng, 0.3) for _ in range(20)]
    upside_down = [one.own.asked[::-1] for one in tasks]
    glanced = [replace(one, own=replace(one.own, glanced=it)) for one, it in zip(tasks, upside_down, strict=True)]
    glimpsed = [replace(one, own=replace(one.own, glimpsed=it)) for one, it in zip(tasks, upside_down, strict=True)]
    for seen, useless, good in ((glanced, "sure_above", "glimpse_above"), (glimpsed, "glimpse_above", "sure_above")):
        rules = fit(seen, texts(rng))
        assert getattr(rules, useless) == 1.0
        assert getattr(rules, good) < 1.0


def test_answers_are_states_or_minus_one() -> None:
    rng = np.random.default_rng(3)
    rules = fit([task(rng, 0.3) for _ in range(30)], texts(rng))
    seen = task(rng, 0.3)
    nothing_alike = Looks(*[-seen.own.asked] * 4)
    own, foreign = np.split(answering.answers(replace(seen, foreign=nothing_alike), rules), 2)
    assert (own == seen.truth).mean() > 0.9
    assert set(foreign.tolist()) == {-1}
    own, foreign = np.split(answering.answers(replace(seen, own=nothing_alike, foreign=seen.own), rules), 2)
    assert set(own.tolist()) == {-1}
    assert (foreign == seen.truth).mean() > 0.9


@pytest.mark.parametrize(("glimpse_above", "unsure"), [(0.999, "followed"), (1.0, "asked")])
def test_what_is_judged_is_what_the_runtime_looks_at(glimpse_above: float, unsure: str) -> None:
    """Of a glimpse that is not sure, the closer look after it counts; without glimpses, the one after a full look."""
    rng = np.random.default_rng(3)
    fitted = fit([task(rng, 0.3) for _ in range(30)], texts(rng))
    never_sure = {"sharpness": 2.0, "abstain_below": 0.5, "sure_above": 0.999, "glimpse_above": glimpse_above}
    rules = msgspec.structs.replace(fitted, **never_sure)
    for name in ("asked", "glanced", "glimpsed", "followed"):
        seen = [task(rng, 0.3) for _ in range(10)]
        useless = [replace(one, own=replace(one.own, **{name: one.own.asked[::-1]})) for one in seen]
        counts = judge(useless, texts(rng), rules).accuracy < 0.5
        both = zip(seen, useless, strict=True)
        agree = np.mean([answering.answers(a, rules) == answering.answers(b, rules) for a, b in both])
        assert counts == (agree < 0.8) == (name == unsure), name


def test_what_looks_like_nothing_taught_is_not_answered_however_sure_the_vote_is() -> None:
    rng = np.random.default_rng(0)
    rules = fit([task(rng, 0.3) for _ in range(30)], texts(rng))
    tasks = [task(rng, 0.3) for _ in range(10)]
    high = msgspec.structs.replace(rules, image_floor=1.1)
    assert judge(tasks, texts(rng), rules).abstained < 0.1
    assert judge(tasks, texts(rng), high).abstained == 1.0


def test_each_look_is_the_encoders_own() -> None:
    """A picture's vector names the way it was looked at and the picture."""

    class Looking:
        def __getattr__(self, way: str) -> Any:
            place = ("studied", "asked", "glanced", "glimpsed", "followed").index(way)
            return lambda pictures: unit(np.float32([np.eye(8)[place] + one.mean() * np.eye(8)[7] for one in pictures]))

    picture = lambda level: np.full((4, 4, 3), level, np.uint8)  # noqa: E731
    (seen,) = answering.see([Task([(picture(0), 0), (picture(1), 1)], [(picture(2), 1)], [picture(3)])], Looking())
    assert seen.truth.tolist() == [1]
    looking = Looking()
    for way in ("asked", "glanced", "glimpsed", "followed"):
        np.testing.assert_array_equal(getattr(seen.own, way), getattr(looking, way)([picture(2)]))
        np.testing.assert_array_equal(getattr(seen.foreign, way), getattr(looking, way)([picture(3)]))
    np.testing.assert_array_equal(seen.ballot.vectors, looking.studied([picture(0), picture(1)]))


def test_other_views_are_judged_as_they_are_looked_at() -> None:
    """A glimpse that is sure of a strange view answers it, whatever a closer look would have said."""
    rng = np.random.default_rng(3)
    rules = fit([task(rng, 0.3) for _ in range(30)], texts(rng))
    seen = [task(rng, 0.3) for _ in range(10)]
    opposite = [replace(one, foreign=Looks(*[-one.own.asked] * 4)) for one in seen]
    mistaken = [replace(one, foreign=replace(one.foreign, glimpsed=one.own.asked[:2])) for one in seen]
    assert judge(opposite, texts(rng), rules).foreign_abstained == 1.0
    assert judge(mistaken, texts(rng), rules).foreign_abstained < 0.2


def test_text_pairs_tell_own_things_from_others() -> None:
    def embed(said: list[str]) -> np.ndarray:
        """A bag of words: own things share words, others do not."""
        words = sorted({word for topic in chosen for state in topic.states for word in state[0].split()})
        return unit(np.float32([[word in text.strip("?").split() for word in words] for text in said]) + 1e-6)

    chosen = [t for t in topics() if " " not in t.name][:8]
    found = text_pairs(chosen, embed)
    assert found.related.mean() > found.unrelated.mean()
    assert len(found.related) == sum(len(topic.questions) for topic in chosen)
