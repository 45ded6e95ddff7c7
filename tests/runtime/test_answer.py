"""The answer as a caller and a machine read it."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest

from edge_ravlm.runtime.answer import UNKNOWN, Answer, Evidence, Latency, Level

LATENCY = Latency({"encode": 5.0}, 12.0, 40.0)


def answer(text: str = "the gate is open", reason: str = "", latency: Latency = LATENCY) -> Answer:
    return Answer(text, 0.9, Level.RETRIEVED, (Evidence(3, "the gate is open", 0.8),), latency, 7.5, reason)


def test_as_dict_is_json_with_everything_in_it() -> None:
    plain = answer().as_dict()
    assert json.loads(msgspec.json.encode(plain)) == {
        "text": "the gate is open",
        "confidence": 0.9,
        "level": "retrieved",
        "evidence": [{"id": 3, "text": "the gate is open", "score": 0.8}],
        "latency": {"stages_ms": {"encode": 5.0}, "total_ms": 12.0, "budget_ms": 40.0, "met": True},
        "frame_time": 7.5,
        "reason": "",
        "complete": True,
        "abstained": False,
    }


def test_as_dict_is_the_callers_own() -> None:
    given = answer()
    given.as_dict()["latency"]["stages_ms"].clear()
    assert given.latency.stages_ms == {"encode": 5.0}


def test_an_answer_with_a_reason_is_an_abstention() -> None:
    assert answer(UNKNOWN, "nothing was taught yet").abstained
    assert not answer().abstained
    assert not answer(UNKNOWN).abstained, "a memory may say so itself"


@pytest.mark.parametrize(("total_ms", "met"), [(39.9, True), (40.0, True), (40.1, False)])
def test_a_budget_is_met_up_to_its_last_moment(total_ms: float, met: bool) -> None:
    latency = Latency({}, total_ms, 40.0)
    assert latency.met is met
    assert answer(latency=latency).as_dict()["latency"]["met"] is met


def test_a_level_reads_as_its_name() -> None:
    assert f"{Level.CACHED} {Level.HELD!s} {Level.RETRIEVED}" == "cached held retrieved"
    assert Level("cached") is Level.CACHED


def test_answers_cannot_be_altered() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer().text = "another"
