"""Lanes: what is due, what a deadline finds, whose turn it is; on a clock that the tests turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.watching.lanes import MOST_DUE, Found, Lane, Pending, Told, Turns, Watch

PIXELS = np.zeros((4, 4, 3), np.uint8)


def frame(index: int, at: float) -> Frame:
    return Frame(PIXELS, at, index, "yard")


def found(index: int, at: float, text: str = "") -> Found:
    latency = Latency({"encode": 5.0}, 6.0, 100.0)
    return Found(Answer(text or f"of {index}", 0.9, Level.RETRIEVED, (), latency, at), index, at)


def watch(name: str = "gate", **settings_: Any) -> Watch:
    return Watch(name, "yard", **{"budget_ms": 100.0, **settings_})


def told(seen: list[Told]) -> list[tuple[int, str, str, int]]:
    return [(one.index, one.answer.text, str(one.answer.level), one.age_frames) for one in seen]


def test_an_answer_in_time_is_given_as_it_is() -> None:
    pending = Pending(watch())
    pending.arrive(frame(0, 10.0))
    (one,) = pending.answered(found(0, 10.0), now=10.02)
    assert told([one]) == [(0, "of 0", "retrieved", 0)]
    assert (one.answer.latency.total_ms, one.age_ms) == (pytest.approx(20), pytest.approx(20))
    assert one.answer.latency.stages_ms == {"encode": 5.0}
    assert not one.is_late
    assert not pending.due


def test_at_the_deadline_the_last_answer_is_held_with_its_age() -> None:
    pending = Pending(watch())
    for index in range(3):
        pending.arrive(frame(index, 10.0 + index / 100))
    list(pending.answered(found(0, 10.0), now=10.05))
    assert not list(pending.expired(now=10.107, guard_s=0.002))
    (one,) = pending.expired(now=10.1085, guard_s=0.002)
    assert told([one]) == [(1, "of 0", "held", 1)]
    assert one.answer.latency.stages_ms == {}
    assert one.age_ms == pytest.approx(108.5)
    assert not one.is_late
    (two,) = pending.expired(now=10.2, guard_s=0.002)
    assert told([two]) == [(2, "of 0", "held", 2)]
    assert two.is_late


def test_without_any_answer_a_question_waits_and_is_late() -> None:
    pending = Pending(watch())
    pending.arrive(frame(0, 10.0))
    assert not list(pending.expired(now=11.0, guard_s=0.0))
    (one,) = pending.answered(found(0, 10.0), now=11.0)
    assert one.is_late
    assert one.answer.level is Level.RETRIEVED


def test_an_answer_is_for_all_that_is_due_up_to_its_frame() -> None:
    pending = Pending(watch())
    for index in range(4):
        pending.arrive(frame(index, 10.0 + index / 100))
    assert told(list(pending.answered(found(2, 10.02), now=10.05))) == [
        (index, "of 2", "retrieved", 0) for index in (0, 1, 2)
    ]
    assert [due.index for due in pending.due] == [3]


def test_an_older_answer_than_the_last_one_is_dropped() -> None:
    pending = Pending(watch())
    pending.arrive(frame(5, 10.0))
    list(pending.answered(found(5, 10.0), now=10.01))
    pending.arrive(frame(6, 10.1))
    assert not list(pending.answered(found(4, 9.9), now=10.11))
    assert told(list(pending.expired(now=11.0, guard_s=0.0))) == [(6, "of 5", "held", 1)]


def test_a_late_wake_up_may_cost_a_quarter_of_the_budget_at_most() -> None:
    pending = Pending(watch(budget_ms=10.0))
    list(pending.answered(found(0, 9.0), now=9.0))
    pending.arrive(frame(1, 10.0))
    assert not list(pending.expired(now=10.0074, guard_s=5.0))
    assert len(list(pending.expired(now=10.0076, guard_s=5.0))) == 1


def test_a_watch_with_a_period_is_due_when_that_is_over() -> None:
    pending = Pending(watch(every_ms=1000.0))
    due = [index for index in range(40) if pending.arrive(frame(index, 10.0 + index / 10))]
    assert due == [0, 10, 20, 30]


def test_what_moves_in_a_pause_is_looked_at_after_it() -> None:
    pending = Pending(watch(every_ms=1000.0, on_motion=True))
    due = [index for index in range(40) if pending.arrive(frame(index, 10.0 + index / 10), moved=index == 3)]
    assert due == [0, 10]


def test_a_watch_on_motion_is_asked_once_before_anything_moves() -> None:
    lane = Lane("yard", [watch(on_motion=True, asked="is it open?")])
    for index, question in enumerate(["is it open?"] * 3 + ["is it closed?"] * 2):  # another one is another watch
        lane.watch([watch(on_motion=True, asked=question)])
        lane.arrive(frame(index, 10.0 + index))
        assert [due.index for due in lane.pending["gate"].due] == [0 if index < 3 else 3]


def test_what_waits_is_bounded() -> None:
    pending = Pending(watch())
    for index in range(MOST_DUE + 7):
        pending.arrive(frame(index, 10.0 + index / 1000))
    assert (len(pending.due), pending.thinned) == (MOST_DUE, 7)


def test_the_newest_frame_wins_and_takes_what_was_wanted_of_the_one_before() -> None:
    lane = Lane("yard", [watch("often"), watch("seldom", every_ms=1e6, priority=2.0)])
    assert lane.arrive(frame(0, 10.0))
    assert lane.arrive(frame(1, 10.01))
    taken, wanted = lane.take()
    assert taken.index == 1
    assert [one.name for one in wanted] == ["seldom", "often"]
    assert (lane.replaced, lane.is_waiting, lane.waiting) == (1, False, 3)


def test_a_frame_that_nothing_is_due_on_is_not_looked_at() -> None:
    lane = Lane("yard", [watch(every_ms=1000.0)])
    assert lane.arrive(frame(0, 10.0))
    lane.take()
    assert not lane.arrive(frame(1, 10.5))
    assert not lane.is_waiting


def test_the_next_deadline_counts_only_where_there_is_something_to_hold() -> None:
    lane = Lane("yard", [watch()])
    lane.arrive(frame(0, 10.0))
    assert lane.next_hold(0.0) == float("inf")
    list(lane.pending["gate"].answered(found(0, 10.0), now=10.0))
    lane.arrive(frame(1, 10.5))
    assert lane.next_hold(0.01) == pytest.approx(10.59)


def lanes(*priorities: float) -> list[Lane]:
    return [Lane(f"{n}", [Watch("w", f"{n}", 100.0, priority=p)]) for n, p in enumerate(priorities)]


def served(
    turns: Turns, all_: list[Lane], rounds: int, cost_ms: dict[str, float] | None = None, first: int = 0
) -> dict[str, int]:
    counts = dict.fromkeys((lane.camera for lane in all_), 0)
    for index in range(first, first + rounds):
        for lane in all_:
            lane.arrive(frame(index, float(index)))
        lane = turns.next(all_)
        assert lane is not None
        lane.take()
        counts[lane.camera] += 1
        turns.spent(lane, (cost_ms or {}).get(lane.camera, 10.0))
    return counts


def test_cameras_share_fairly_and_by_priority() -> None:
    assert served(Turns(), lanes(1, 1, 1), 300) == {"0": 100, "1": 100, "2": 100}
    counts = served(Turns(), lanes(1, 3), 400)
    assert counts["1"] == pytest.approx(3 * counts["0"], abs=3)


def test_time_is_shared_not_turns() -> None:
    counts = served(Turns(), lanes(1, 1), 300, {"0": 20.0, "1": 10.0})
    assert counts["1"] == pytest.approx(2 * counts["0"], abs=3)


def test_who_was_idle_saves_up_no_claim() -> None:
    turns, all_ = Turns(), lanes(1, 1)
    served(turns, all_[:1], 100)
    counts = served(turns, all_, 20, first=100)
    assert counts["1"] <= 11
    assert Turns().next(lanes(1)) is None


def together(turns: Turns, all_: list[Lane], rounds: int, most: int, start: int = 0) -> dict[str, int]:
    """As ``served``, with up to ``most`` more lanes beside the one whose turn it is; each costs the same."""
    counts = dict.fromkeys((lane.camera for lane in all_), 0)
    for index in range(start, start + rounds):
        for lane in all_:
            lane.arrive(frame(index, float(index)))
        first = turns.next(all_)
        assert first is not None
        for lane in (first, *turns.beside(first, all_, most)):
            lane.take()
            counts[lane.camera] += 1
            turns.spent(lane, 10.0)
    return counts


def test_equal_cameras_are_looked_at_together() -> None:
    assert together(Turns(), lanes(1, 1, 1), 100, 3) == {"0": 100, "1": 100, "2": 100}
    assert set(together(Turns(), lanes(1, 1, 1), 300, 1).values()) == {200}, "two at a time, fairly"


def test_a_camera_of_low_priority_does_not_come_along_every_time() -> None:
    counts = together(Turns(), lanes(1, 3), 400, 1)
    assert counts["1"] == 400
    assert counts["0"] == pytest.approx(400 / 3, abs=3)


def test_who_was_idle_saves_up_no_claim_beside_others_either() -> None:
    turns, all_ = Turns(), lanes(1, 1, 1)
    together(turns, all_[:2], 100, 1)
    counts = together(turns, all_, 60, 1, start=100)
    assert max(counts.values()) - min(counts.values()) <= 4


def test_what_is_given_back_waits_unless_a_newer_frame_came() -> None:
    lane = Lane("yard", [watch()])
    lane.arrive(frame(0, 10.0))
    taken = lane.take()
    lane.give_back(*taken)
    assert lane.take() == taken
    lane.arrive(frame(1, 10.1))
    lane.give_back(*taken)
    kept, wanted = lane.take()
    assert (kept.index, [one.name for one in wanted], lane.replaced) == (1, ["gate"], 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["arrive", "answer", "tick"]), st.integers(1, 60)), max_size=80))
def test_every_question_is_answered_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    """Whatever comes when: arrivals, answers to any frame that came, time passing."""
    lane, now, index, seen = Lane("yard", [watch()]), 10.0, 0, list[Told]()
    pending = lane.pending["gate"]
    for what, amount in steps:
        now += amount / 1e3
        if what == "arrive":
            lane.arrive(frame(index, now))
            index += 1
        elif what == "answer" and lane.is_waiting:
            taken, _ = lane.take()
            now += amount / 1e3
            seen += pending.answered(found(taken.index, taken.captured_at), now)
        seen += lane.expired(now, 0.002)
    seen += pending.answered(found(index, now), now)
    assert [one.index for one in seen] == list(range(index))
    ages = [one.index - one.age_frames for one in seen]
    assert ages == sorted(ages), "no answer is older than one that was given before it"
