"""The watcher's threads: nothing lost, nothing out of order, deadlines kept while an answer takes its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.watching import watcher as watching
from edge_ravlm.runtime.watching.lanes import Told, Watch
from edge_ravlm.runtime.watching.watcher import Watcher, _Guard

PIXELS = np.zeros((4, 4, 3), np.uint8)
LONG = 60_000.0
PATIENCE_S = 20.0


def frame(index: int) -> Frame:
    return Frame(PIXELS, index=index, source="yard")


def answer(of: Frame, watch: Watch) -> Answer:
    total_ms = (time.monotonic() - of.captured_at) * 1e3
    return Answer(f"of {of.index}", 0.9, Level.RETRIEVED, (), Latency({}, total_ms, watch.budget_ms), of.captured_at)


class Ears:
    """Takes answers, and lets a test wait for some number of them."""

    def __init__(self) -> None:
        self.all: list[Told] = []
        self._changed = threading.Condition()

    def __call__(self, one: Told) -> None:
        with self._changed:
            self.all.append(one)
            self._changed.notify_all()

    def wait(self, count: int) -> list[Told]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, PATIENCE_S)
            return self.all[:count]


class Gate:
    """An ask that waits until it is let through."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, of: Frame, watch: Watch) -> Answer:
        self.entered.release()
        assert self.open.acquire(timeout=PATIENCE_S)
        return answer(of, watch)

    def await_entry(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)


def shown(told: list[Told]) -> list[tuple[int, str, str]]:
    return [(one.index, one.answer.text, str(one.answer.level)) for one in told]


def test_every_frame_is_answered_in_order_when_there_is_time() -> None:
    told = Ears()
    with Watcher(answer, [Watch("gate", "yard", LONG)], told) as watcher:
        for index in range(20):
            watcher.offer("yard", frame(index))
            told.wait(index + 1)
    assert shown(told.all) == [(index, f"of {index}", "retrieved") for index in range(20)]


def test_a_deadline_holds_while_an_answer_takes_its_time() -> None:
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("gate", "yard", 50.0)], told) as watcher:
        watcher.offer("yard", frame(0))
        ask.await_entry()
        ask.open.release()
        told.wait(1)
        watcher.offer("yard", frame(1))
        ask.await_entry()  # and it never comes back in time
        held = told.wait(2)[1]
        assert (held.index, held.answer.text, held.answer.level, held.age_frames) == (1, "of 0", Level.HELD, 1)
        assert not ask.open.acquire(blocking=False)
        ask.open.release()
    assert len(told.all) == 2, "what came too late is not given again"


def test_a_sooner_deadline_is_kept_while_a_later_one_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_IDLE_S", 10 * PATIENCE_S)  # whoever is not woken sleeps on
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("drive", "drive", LONG), Watch("gate", "yard", 50.0)], told) as watcher:
        for camera in ("drive", "yard"):
            watcher.offer(camera, frame(0))
            ask.await_entry()
            ask.open.release()
        told.wait(2)
        watcher.offer("drive", frame(1))
        ask.await_entry()  # from now on nobody has time to look
        watcher.offer("yard", frame(1))
        held = told.wait(3)[2]
        assert (held.watch, held.index, held.answer.level) == ("gate", 1, Level.HELD)
        ask.open.release()
        ask.open.release()


def test_an_answer_that_came_too_late_is_the_one_that_is_held_next() -> None:
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("gate", "yard", 50.0)], told) as watcher:
        for index in range(2):
            watcher.offer("yard", frame(index))
            ask.await_entry()
            if index == 0:
                ask.open.release()
            told.wait(index + 1)
        watcher.offer("yard", frame(2))
        ask.open.release()  # of frame 1, after its deadline
        ask.await_entry()
        third = told.wait(3)[2]
        assert (third.index, third.answer.text, third.age_frames) == (2, "of 1", 1)
        ask.open.release()


def test_the_newest_frame_wins_and_its_answer_is_for_those_before_it() -> None:
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("gate", "yard", LONG)], told) as watcher:
        watcher.offer("yard", frame(0))
        ask.await_entry()
        for index in range(1, 9):
            watcher.offer("yard", frame(index))
        assert watcher.waiting == 9
        assert watcher.replaced == {"yard": 7}
        ask.open.release()
        ask.await_entry()
        ask.open.release()
        told.wait(9)
    assert shown(told.all) == [(0, "of 0", "retrieved"), *((index, "of 8", "retrieved") for index in range(1, 9))]


def test_closing_answers_what_is_due_and_then_takes_nothing() -> None:
    told = Ears()
    watcher = Watcher(answer, [Watch("gate", "yard", LONG)], told)
    for index in range(5):
        watcher.offer("yard", frame(index))
    watcher.close()
    assert [one.index for one in told.all] == [0, 1, 2, 3, 4]
    watcher.offer("yard", frame(5))
    watcher.close()
    assert (len(told.all), watcher.waiting) == (5, 0)


def test_an_error_is_told_and_the_next_frame_is_answered() -> None:
    told = Ears()

    def ask(of: Frame, watch: Watch) -> Answer:
        if of.index == 0:
            raise BundleError("model", expected="an answer", got="none", do="try again")
        return answer(of, watch)

    with Watcher(ask, [Watch("gate", "yard", LONG)], told) as watcher:
        watcher.offer("yard", frame(0))
        _until(lambda: bool(watcher.faults))
        watcher.offer("yard", frame(1))
        told.wait(2)
    assert shown(told.all) == [(0, "of 1", "retrieved"), (1, "of 1", "retrieved")]
    assert list(watcher.faults) == ["model: expected an answer, got none; try again."]


def test_whoever_takes_answers_may_fail_and_the_next_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = Ears()

    def tell(one: Told) -> None:
        told(one)
        if one.index < 2:
            raise ZeroDivisionError("by the ears")

    with Watcher(answer, [Watch("gate", "yard", LONG)], tell) as watcher:
        for index in range(3):
            watcher.offer("yard", frame(index))
            told.wait(index + 1)
    assert [one.index for one in told.all] == [0, 1, 2]
    assert list(watcher.faults) == ["by the ears"] * 2
    assert caplog.text.count("watch 'gate': by the ears") == 1


def test_watches_can_be_replaced_while_frames_come() -> None:
    told = Ears()
    gate, door = Watch("gate", "yard", LONG), Watch("door", "yard", LONG)
    with Watcher(answer, [gate], told) as watcher:
        watcher.offer("yard", frame(0))
        told.wait(1)
        watcher.watch([gate, door])
        watcher.offer("yard", frame(1))
        told.wait(3)
        watcher.watch([door])
        watcher.offer("yard", frame(2))
        told.wait(4)
        watcher.offer("street", frame(0))  # nobody watches there
    assert [(one.watch, one.index) for one in told.all[:1]] == [("gate", 0)]
    assert {(one.watch, one.index) for one in told.all[1:3]} == {("gate", 1), ("door", 1)}
    assert [(one.watch, one.index) for one in told.all[3:]] == [("door", 2)]


def test_two_watches_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="names that differ"):
        Watcher(answer, [Watch("gate", "yard", LONG), Watch("gate", "street", LONG)], Ears())


def test_after_a_change_of_picture_nothing_old_is_held() -> None:
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("gate", "yard", 20.0)], told) as watcher:
        watcher.offer("yard", frame(0))
        ask.await_entry()
        ask.open.release()
        told.wait(1)
        watcher.forget("yard")
        watcher.offer("yard", frame(1))
        ask.await_entry()
        time.sleep(0.1)  # the deadline passes, and there is nothing that could be held
        assert len(told.all) == 1
        ask.open.release()
        late = told.wait(2)[1]
    assert (late.answer.text, late.answer.level, late.is_late) == ("of 1", Level.RETRIEVED, True)


def test_what_a_replaced_camera_showed_is_no_answer_about_the_new_one() -> None:
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("gate", "yard", LONG)], told) as watcher:
        watcher.offer("yard", frame(5000))
        ask.await_entry()
        watcher.forget("yard")
        watcher.offer("yard", frame(0))  # the new one counts from 0
        ask.open.release()
        ask.await_entry()
        ask.open.release()
        told.wait(1)
    assert [(one.index, one.answer.text, one.age_frames) for one in told.all] == [(0, "of 0", 0)]
    assert watcher.waiting == 0


def test_an_answer_to_the_question_before_is_none_to_the_new_one() -> None:
    told, ask = Ears(), Gate()
    with Watcher(ask, [Watch("gate", "yard", 50.0, asked="is it open?")], told) as watcher:
        watcher.offer("yard", frame(0))
        ask.await_entry()
        watcher.watch([Watch("gate", "yard", 50.0, asked="is it closed?")])
        watcher.offer("yard", Frame(PIXELS, time.monotonic() - 10.0, 1, "yard"))  # long overdue
        ask.open.release()
        ask.await_entry()
        time.sleep(0.1)  # and there is nothing that could be held
        ask.open.release()
        told.wait(1)
    assert shown(told.all) == [(1, "of 1", "retrieved")]


def test_a_change_of_watches_leaves_what_waits_to_be_looked_at() -> None:
    told, ask = Ears(), Gate()
    gate, door = Watch("gate", "yard", LONG, on_motion=True), Watch("door", "drive", LONG)
    with Watcher(ask, [gate, door], told) as watcher:
        watcher.offer("drive", frame(0))
        ask.await_entry()
        watcher.offer("yard", frame(0), {"gate"})
        watcher.watch([gate, door])
        ask.open.release()
        ask.await_entry()
        ask.open.release()
        told.wait(2)
    assert [(one.watch, one.index) for one in told.all] == [("door", 0), ("gate", 0)]


def test_a_watch_on_motion_that_failed_or_is_to_be_asked_again_is_due_though_nothing_moves() -> None:
    told = Ears()

    def ask(of: Frame, watch: Watch) -> Answer:
        if of.index == 0:
            raise BundleError("model", expected="an answer", got="none", do="try again")
        return answer(of, watch)

    with Watcher(ask, [Watch("gate", "yard", LONG, on_motion=True)], told) as watcher:
        watcher.offer("yard", frame(0))
        _until(lambda: bool(watcher.faults))
        watcher.again("yard", "nobody")
        watcher.again("street", "gate")
        watcher.offer("yard", frame(1))
        told.wait(2)
        watcher.offer("yard", frame(2))
        watcher.again("yard", "gate")
        watcher.offer("yard", frame(3))
        told.wait(3)
    assert [one.index for one in told.all] == [0, 1, 3]


def test_several_threads_may_look_and_the_order_stays() -> None:
    told = Ears()

    def ask(of: Frame, watch: Watch) -> Answer:
        time.sleep(0.002 if of.index % 3 else 0.006)
        return answer(of, watch)

    with Watcher(ask, [Watch("gate", "yard", LONG)], told, workers=3) as watcher:
        for index in range(60):
            watcher.offer("yard", frame(index))
            time.sleep(0.001)
    assert [one.index for one in told.all] == list(range(60))
    found = [one.index - one.age_frames for one in told.all]
    assert found == sorted(found)


def _until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.002)


# -- several cameras at once -------------------------------------------------------------------------------------------

YARDS = [Watch(name, name, LONG) for name in ("yard", "drive", "door")]


class Preparing:
    """Says what it was given, and how many of them it did."""

    def __init__(self, done: int | Exception) -> None:
        self.done, self.given = done, list[list[str]]()

    def __call__(self, due: Sequence[tuple[Frame, Watch]]) -> int:
        self.given.append([watch.name for _, watch in due])
        if isinstance(self.done, Exception):
            raise self.done
        return min(self.done, len(due))


def offered_together(prepare: Preparing) -> tuple[list[Told], Watcher]:
    """While the first camera's first frame is answered, a frame of each comes."""
    told, ask = Ears(), Gate()
    with Watcher(ask, YARDS, told, prepare=prepare, together=4) as watcher:
        watcher.offer("yard", frame(0))
        ask.await_entry()
        for camera in ("yard", "drive", "door"):
            watcher.offer(camera, frame(1))
        for _ in range(4):
            ask.open.release()
        told.wait(4)
    return told.all, watcher


@pytest.mark.parametrize("done", [3, 1, 0, ValueError("no such engine")])
def test_every_camera_is_answered_whatever_was_prepared(done: int | Exception) -> None:
    prepare = Preparing(done)
    told, watcher = offered_together(prepare)
    answers = sorted((one.camera, one.index, one.answer.text) for one in told)
    assert answers == [("door", 1, "of 1"), ("drive", 1, "of 1"), ("yard", 0, "of 0"), ("yard", 1, "of 1")]
    assert sorted(prepare.given[0]) == ["door", "drive", "yard"]
    # Those that it was not done for wait for their own turn, and are offered once more.
    assert len(prepare.given) == (1 if done == 3 else 2)
    assert list(watcher.faults) == (["no such engine"] * 2 if isinstance(done, Exception) else [])


def test_one_question_alone_needs_no_preparing() -> None:
    told, prepare = Ears(), Preparing(0)
    with Watcher(answer, YARDS, told, prepare=prepare, together=4) as watcher:
        watcher.offer("yard", frame(0))
        told.wait(1)
    assert prepare.given == []


# -- how long before a deadline an answer is held ----------------------------------------------------------------------


def test_the_guard_covers_999_of_1000_and_forgets() -> None:
    guard = _Guard()
    first_s = guard.s
    for _ in range(10):
        guard.acted(0.0)
    assert guard.s == first_s, "ten say nothing of one in a thousand"
    for _ in range(2048):
        guard.acted(0.0002)
    calm_s = guard.s
    assert 0.0002 < calm_s < first_s
    guard.acted(0.05)
    assert guard.s == calm_s, "one of two thousand may be late"
    for _ in range(4):
        guard.acted(0.006)
    assert guard.s > 0.006
    for _ in range(2048):
        guard.acted(0.0002)
    assert guard.s == calm_s
