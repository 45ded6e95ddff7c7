"""Events: what changed and stayed so, and not again too soon."""

from __future__ import annotations

from collections.abc import Sequence

from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.watching.events import Steady
from edge_ravlm.runtime.watching.lanes import Told


def told(text: str, at: float = 0.0, age_frames: int = 0) -> Told:
    answer = Answer(text, 0.9, Level.RETRIEVED, (), Latency({"encode": 5.0}, 6.0, 100.0), at)
    return Told("yard", "gate", int(at * 10), at, answer, age_frames, 6.0)


def events(steady: Steady, texts: Sequence[str], every_s: float = 1.0) -> list[tuple[int, str, str | None]]:
    """(place, answer, before) of each event."""
    found = [(place, steady.add(told(text, place * every_s))) for place, text in enumerate(texts)]
    return [(place, event.told.answer.text, event.before) for place, event in found if event is not None]


def test_each_change_is_an_event_and_tells_what_was_before() -> None:
    assert events(Steady(), "aabba") == [(0, "a", None), (2, "b", "a"), (4, "a", "b")]


def test_n_of_m_answers_have_to_agree() -> None:
    assert events(Steady(agree=(2, 3)), "abababbbab") == [(2, "a", None), (3, "b", "a"), (4, "a", "b"), (5, "b", "a")]
    assert events(Steady(agree=(3, 4)), "aaababbbbaaa") == [(2, "a", None), (6, "b", "a"), (11, "a", "b")]
    assert events(Steady(agree=(3, 3)), "aabaabaab") == []
    assert events(Steady(agree=(2, 4)), "aabbbb") == [(1, "a", None), (3, "b", "a")], "as many older ones say a"


def test_only_answers_of_interest_are_events_and_the_others_still_count_as_states() -> None:
    assert events(Steady(answers=("b",)), "aabbab") == [(2, "b", "a"), (5, "b", "a")]


def test_the_same_answer_is_no_event_before_it_cooled_down() -> None:
    assert events(Steady(cool_down_s=5.0), "abababab") == [(0, "a", None), (1, "b", "a"), (6, "a", "b"), (7, "b", "a")]


def test_a_change_that_outlasts_its_cool_down_is_an_event_then() -> None:
    assert events(Steady(cool_down_s=5.0), "abaaaaaaa") == [(0, "a", None), (1, "b", "a"), (5, "a", "b")]
    assert events(Steady(("a",), cool_down_s=5.0), "abaaaaaaa") == [(0, "a", None), (5, "a", "b")]


def test_one_answer_in_other_letters_is_no_other_answer() -> None:
    texts = ["The gate is closed.", "the gate  is closed", "the gate is open", "The gate is OPEN!", "The gate is open."]
    assert events(Steady(("The gate is open",)), texts) == [(2, "the gate is open", "The gate is closed.")]
    assert [place for place, *_ in events(Steady(agree=(2, 2)), texts)] == [1, 3]


def test_what_is_settled_needs_no_further_answer() -> None:
    steady = Steady(agree=(2, 3), cool_down_s=60.0)

    def settled(text: str, at: float, age_frames: int = 0) -> bool:
        steady.add(told(text, at, age_frames))
        return steady.settled

    assert [settled("a", 0.0), settled("a", 1.0), settled("a", 2.0)] == [False, True, True]
    assert not settled("a", 3.0, age_frames=1), "nobody has looked at that frame"
    assert [settled("b", 4.0), settled("b", 5.0)] == [False, True]
    assert [settled("a", 6.0), settled("a", 7.0), settled("a", 61.0)] == [False, False, True], "when it cooled down"


def test_what_turned_is_told_whatever_is_an_event() -> None:
    steady = Steady(("a",), agree=(2, 3), cool_down_s=60.0)

    def turned(text: str, at: float, age_frames: int = 0) -> bool:
        steady.add(told(text, at, age_frames))
        return steady.turned

    assert [turned("a", 0.0), turned("A.", 1.0), turned("a", 2.0)] == [False, True, False]
    assert [turned("b", 3.0), turned("b", 4.0, age_frames=1), turned("b", 5.0)] == [False, False, True], "no event"
    assert [turned("a", 6.0), turned("a", 7.0), turned("a", 8.0)] == [False, True, False], "too soon for an event"


def test_a_held_answer_says_nothing_new() -> None:
    steady = Steady(agree=(2, 2))
    assert steady.add(told("a")) is None
    assert steady.add(told("a", 1.0, age_frames=1)) is None
    event = steady.add(told("a", 2.0))
    assert event is not None
    row = event.as_dict()
    assert (row["camera"], row["watch"], row["frame"], row["text"], row["before"]) == ("yard", "gate", 20, "a", None)
    assert (row["age_frames"], row["level"], row["latency"]["total_ms"]) == (0, "retrieved", 6.0)
