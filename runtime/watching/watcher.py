"""Watching in earnest: frames come in, one thread looks, another keeps the deadlines."""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import accumulate

from edge_ravlm.errors import EdgeRavlmError, UsageError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.watching.lanes import Found, Lane, Told, Turns, Watch
from edge_ravlm.runtime.watching.process import hurry, stay

log = logging.getLogger(__name__)

Ask = Callable[[Frame, Watch], Answer]
"""Answers a watch's question about a frame as well as its deadline allows; called from the looking threads."""

Prepare = Callable[[Sequence[tuple[Frame, Watch]]], int]
"""Looks at what several questions are about, before each is asked; for how many, from the first on, that is done."""

Tell = Callable[[Told], object]
"""Takes an answer; called in order of each watch's frames, and must not dawdle: deadlines wait for it."""

_Work = tuple[Lane, Frame, list[Watch]]

_MARGIN_S, _FIRST_S = 0.0005, 0.002
"""Added to what the guard has learnt, and what it begins with."""

_LATENESSES, _QUANTILE = 2048, 0.999
"""Deadlines that the guard is learnt from, and the share of them that it has to cover."""

_IDLE_S = 0.5


class Watcher:
    """Answers watches about frames by their deadlines.

    Args:
        ask: answers.
        watches: what to ask.
        tell: takes the answers.
        workers: threads that look; one, unless answers are written in words while the next frame is looked at.
        prepare: called before ``ask`` where several questions are due; None leaves that out.
        together: cameras whose frames may be prepared at once.
        processors: that the looking threads stay on; all without any.

    Attributes:
        faults: sentences of errors that answering ended in; such a frame's answer is held, or missing.
    """

    def __init__(
        self,
        ask: Ask,
        watches: Iterable[Watch],
        tell: Tell,
        workers: int = 1,
        *,
        prepare: Prepare | None = None,
        together: int = 1,
        processors: Sequence[int] = (),
    ) -> None:
        self._ask, self._tell, self._prepare = ask, tell, prepare
        self._together = together if prepare is not None else 1
        self._processors = processors
        self._lanes: dict[str, Lane] = {}
        self._turns, self._guard = Turns(), _Guard()
        # Two wait for news of the same lanes; a frame is none for the deadlines where they will wake before its own.
        lock, self._telling = threading.RLock(), threading.Lock()
        self._changed, self._sooner = threading.Condition(lock), threading.Condition(lock)
        self._awaited = 0.0
        self._stopping = False
        self._busy = 0
        self.faults: deque[str] = deque(maxlen=32)
        self.watch(watches)
        looking = [threading.Thread(target=self._look, name=f"looking {n}", daemon=True) for n in range(workers)]
        self._threads = [*looking, threading.Thread(target=self._keep, name="deadlines", daemon=True)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self, watches: Iterable[Watch]) -> None:
        """Replace all watches; one that stays the same keeps what it knows."""
        by_camera: dict[str, list[Watch]] = {}
        for watch in watches:
            by_camera.setdefault(watch.camera, []).append(watch)
        names = [watch.name for of in by_camera.values() for watch in of]
        if len(set(names)) < len(names):
            raise UsageError("watches", expected="names that differ", got=", ".join(sorted(names)), do="rename one")
        with self._changed:
            self._lanes = {camera: self._lanes.get(camera) or Lane(camera, ()) for camera in by_camera}
            for camera, of in by_camera.items():
                self._lanes[camera].watch(of)
            self._wake_all()

    def offer(self, camera: str, frame: Frame, moved: Container[str] = ()) -> None:
        """A camera captured a frame; returns at once.

        Args:
            camera: its name.
            frame: its index larger than those before.
            moved: names of watches that something moved for.
        """
        with self._changed:
            lane = self._lanes.get(camera)
            if lane is not None and not self._stopping and lane.arrive(frame, moved):
                self._changed.notify()
                self._wake_before(lane)

    def forget(self, camera: str) -> None:
        """What was seen there last is no longer shown: nothing of it is held, and what is due on it is let go."""
        with self._changed:
            if camera in self._lanes:
                self._lanes[camera] = self._lanes[camera].anew()

    def again(self, camera: str, watch: str) -> None:
        """Ask a watch once more, even if nothing moves."""
        with self._changed:
            lane = self._lanes.get(camera)
            pending = lane.pending.get(watch) if lane is not None else None
            if pending is not None:
                pending.moved = True

    @property
    def waiting(self) -> int:
        """How many answers are due."""
        with self._changed:
            return sum(lane.waiting for lane in self._lanes.values())

    @property
    def replaced(self) -> Mapping[str, int]:
        """By camera, the frames that a newer one replaced before anybody looked."""
        with self._changed:
            return {name: lane.replaced for name, lane in self._lanes.items()}

    @property
    def thinned(self) -> Mapping[str, int]:
        """By watch, the frames that it was not asked about since too many were due already; see ``MOST_DUE``."""
        with self._changed:
            every = [pending for lane in self._lanes.values() for pending in lane.pending.values()]
            return {pending.watch.name: pending.thinned for pending in every if pending.thinned}

    @property
    def guard_ms(self) -> float:
        """How long before a deadline an answer is held, as the machine's wake-ups taught."""
        return self._guard.s * 1e3

    def close(self) -> None:
        """Answer what is due, then stop."""
        with self._changed:
            self._stopping = True
            self._wake_all()
        for thread in self._threads:
            thread.join()
        with self._changed:  # what an error left without an answer of its own
            left = [one for lane in self._lanes.values() for one in lane.expired(float("inf"), 0.0)]
        self._say(left)

    # -- looking -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        stay(self._processors)
        while work := self._next():
            began = time.perf_counter()
            work = self._prepared(work)
            shared_ms = (time.perf_counter() - began) * 1e3 / len(work)
            for lane, frame, watches in work:
                began = time.perf_counter()
                for watch in watches:
                    self._answer(lane, frame, watch)
                with self._changed:
                    self._turns.spent(lane, shared_ms + (time.perf_counter() - began) * 1e3)
            with self._changed:
                self._busy -= 1
                if self._stopping:
                    self._wake_all()

    def _next(self) -> list[_Work]:
        """Whose turn it is, with those who are next if they may be prepared together; nothing at the end."""
        with self._changed:
            while True:
                lanes = list(self._lanes.values())
                first = self._turns.next(lanes)
                if self._stopping and first is None:
                    return []
                if first is not None:
                    self._busy += 1
                    beside = self._turns.beside(first, lanes, self._together - 1)
                    return [(lane, *lane.take()) for lane in (first, *beside)]
                self._changed.wait(_IDLE_S)

    def _prepared(self, work: list[_Work]) -> list[_Work]:
        """The cameras that are to be answered now: those that were prepared, or the first one alone."""
        due = [(frame, watch) for _, frame, watches in work for watch in watches]
        if self._prepare is None or len(due) < 2:
            return work
        try:
            done = self._prepare(due)
        except Exception as error:  # each looks for itself
            self._fault(due[0][1].name, error)
            done = 0
        ends = accumulate(len(watches) for _, _, watches in work)
        ready = max(1, sum(end <= done for end in ends))
        with self._changed:
            for lane, frame, watches in work[ready:]:
                lane.give_back(frame, watches)
        return work[:ready]

    def _answer(self, lane: Lane, frame: Frame, watch: Watch) -> None:
        try:
            answer = self._ask(frame, watch)
        except Exception as error:  # whatever it is, the other watches go on
            self.again(watch.camera, watch.name)
            self._fault(watch.name, error)
            return
        found = Found(answer, frame.index, frame.captured_at)
        with self._telling:
            with self._changed:
                # A camera or a question that replaced this one meanwhile has to get an answer of its own.
                pending = lane.pending.get(watch.name) if self._lanes.get(lane.camera) is lane else None
                same = pending is not None and pending.watch == watch
                told = list(pending.answered(found, time.monotonic())) if pending is not None and same else []
                self._wake_before(lane)  # a first answer: from now on there is something to hold
            self._say(told)

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        hurry()
        while (awaited := self._await_deadline()) is not None:
            with self._telling:
                with self._changed:
                    now = time.monotonic()
                    if awaited:
                        self._guard.acted(now - awaited)
                    told = [one for lane in self._lanes.values() for one in lane.expired(now, self._guard.s)]
                self._say(told)

    def _wake_before(self, lane: Lane) -> None:
        """See to it that the deadlines are looked at before the next one of a lane."""
        if lane.next_hold(self._guard.s) < self._awaited:
            self._sooner.notify()

    def _wake_all(self) -> None:
        self._changed.notify_all()
        self._sooner.notify()

    def _await_deadline(self) -> float | None:
        """Sleep until one is near.

        Returns:
            When it was to wake; 0 where that had passed before it could sleep, None to go on no more.
        """
        awaited = 0.0
        with self._changed:
            while True:
                lanes = self._lanes.values()
                if self._stopping and not self._busy and not any(lane.is_waiting for lane in lanes):
                    return None
                at = min((lane.next_hold(self._guard.s) for lane in lanes), default=float("inf"))
                now = time.monotonic()
                if at <= now:
                    return at if at == awaited else 0.0
                self._awaited = awaited = at
                self._sooner.wait(min(at - now, _IDLE_S))

    def _say(self, told: Sequence[Told]) -> None:
        for one in told:
            self._say_one(one)

    def _say_one(self, told: Told) -> None:
        try:
            self._tell(told)
        except Exception as error:  # as above; and the deadlines of all depend on this thread
            self._fault(told.watch, error)

    def _fault(self, watch: str, error: Exception) -> None:
        """Say it once, until something else happens: frames come many times a second."""
        sentence = str(error) or type(error).__name__
        if not self.faults or self.faults[-1] != sentence:
            log.warning("watch '%s': %s", watch, sentence, exc_info=not isinstance(error, EdgeRavlmError))
        self.faults.append(sentence)


class _Guard:
    """How long before a deadline to act: what this machine lets answers come late by."""

    def __init__(self) -> None:
        self._newest = deque([_FIRST_S], maxlen=_LATENESSES)
        self._ordered = [_FIRST_S]

    @property
    def s(self) -> float:
        """Seconds."""
        return _MARGIN_S + self._ordered[math.ceil(_QUANTILE * len(self._ordered)) - 1]

    def acted(self, late_s: float) -> None:
        """So much later than it wanted to."""
        if len(self._newest) == _LATENESSES:
            del self._ordered[bisect_left(self._ordered, self._newest[0])]
        self._newest.append(late_s)
        insort(self._ordered, late_s)
