"""What memories say and what is asked: answers stand in the text, inventions are of one half only."""

from __future__ import annotations

import numpy as np
import pytest

from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.questions import (
    INVENTED,
    KINDS,
    Asked,
    asked,
    entry,
    half_of,
    hops,
    invented,
    replacement,
    told,
    word,
)
from edge_ravlm.export.data.signs import named

pytestmark = pytest.mark.export

PIXELS = np.zeros((2, 2, 4), np.uint8)
SIGN = named("warning--falling-rocks--g1")
SOFA = Piece("X#1", PIXELS, "corner sofa", "Living room", ("seat", "lounge"), 200, 150, 8.5, "Ada", "CC0-1.0")


def facts(seed: int, thing: object = SOFA) -> list[Asked]:
    return asked(thing, np.random.default_rng(seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("thing", [SIGN, SOFA])
def test_every_answer_stands_word_for_word_in_the_entry(thing: object, seed: int) -> None:
    rng, known = np.random.default_rng(seed), facts(seed, thing)
    for fact in known:
        text, question = told(fact, known, rng)
        assert question == fact
        assert fact.answer is not None
        assert fact.answer in fact.fact
        assert fact.answer.casefold() in text.casefold()
        assert "{" not in fact.question + fact.fact


@pytest.mark.parametrize("seed", range(40))
def test_a_silent_entry_says_something_but_not_that(seed: int) -> None:
    rng, known = np.random.default_rng(seed), facts(seed)
    for fact in known:
        text, question = told(fact, known, rng, silent=True)
        assert (question.answer, question.fact) == (None, "")
        assert text
        if fact.kind in ("name", "caption"):
            assert "sofa" not in text
        assert fact.fact not in text


def test_facts_are_the_things_own_and_invented_ones() -> None:
    own = {fact.kind: fact.answer for fact in facts(0) if fact.kind not in INVENTED}
    assert own.pop("tag") in SOFA.tags
    assert own == {
        "name": "corner sofa",
        "width": "200 cm",
        "depth": "150 cm",
        "height": "8.5 cm",
        "room": "living room",
        "caption": "a corner sofa for the living room",
    }
    own = {fact.kind: fact.answer for fact in facts(0, SIGN) if fact.kind not in INVENTED}
    assert own == {
        "meaning": "falling rocks",
        "category": "warning",
        "caption": "a warning sign that means falling rocks",
    }
    assert {fact.kind for fact in [*facts(0), *facts(0, SIGN)]} == set(KINDS)


def test_equal_seeds_give_equal_facts_and_wordings_vary() -> None:
    assert facts(3) == facts(3)
    questions = {fact.question for seed in range(60) for fact in facts(seed) if fact.kind == "width"}
    assert len(questions) > 8


def test_a_question_names_the_thing_only_when_asked_to() -> None:
    assert not any("sofa" in fact.question for seed in range(20) for fact in facts(seed))
    rng = np.random.default_rng(0)
    named_ones = [fact for _ in range(20) for fact in asked(SOFA, rng, named=1.0)]
    assert any("the corner sofa" in fact.question for fact in named_ones)
    assert not any("sofa" in fact.question for fact in named_ones if fact.kind in ("name", "caption"))


def test_an_edited_fact_differs_in_the_answer_alone() -> None:
    fact = Asked("how wide is this?", "20 cm", "the 20 cm box is 20 cm wide", "width")
    assert fact.edited("7 cm") == Asked("how wide is this?", "7 cm", "the 20 cm box is 7 cm wide", "width")
    nothing = Asked("how wide is this?", None, "", "width")
    assert nothing.edited("7 cm") == nothing


def test_no_invention_is_of_both_halves() -> None:
    rng = np.random.default_rng(0)
    train, held_out = ({word(rng, half) for _ in range(400)} for half in ("train", "held_out"))
    assert len(train) > 300
    assert len(held_out) > 300
    assert not train & held_out
    assert {half_of(one) for one in train} == {"train"}
    for kind in INVENTED:
        assert not {invented(kind, rng, "train") for _ in range(50)} & {
            invented(kind, rng, "held_out") for _ in range(50)
        }


def test_a_replacement_is_of_the_kind() -> None:
    rng = np.random.default_rng(0)
    assert replacement("width", rng).endswith(" cm")
    assert replacement("year", rng).isdigit()
    assert replacement("meaning", rng).replace(" ", "").isalpha()


def test_two_hops_meet_in_the_code() -> None:
    for seed in range(30):
        hop = hops("no stopping", np.random.default_rng(seed), "held_out")
        assert hop.code in hop.shown
        assert hop.code in hop.explained
        assert hop.answer in hop.explained
        assert hop.answer not in hop.shown + hop.question
        assert hop.code not in hop.question + hop.code_question


def test_an_entry_holds_all_of_its_facts_in_any_order() -> None:
    known = facts(0)[:3]
    texts = {entry(known, np.random.default_rng(seed)) for seed in range(40)}
    assert len(texts) > 6
    for text in texts:
        assert all(fact.fact.casefold() in text.casefold() for fact in known)
