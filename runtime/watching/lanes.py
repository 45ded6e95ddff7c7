"""What is due when, whose turn it is, and which answer a deadline finds: no threads, no clock of its own.

A camera has a lane. Its newest frame waits in a slot of one, where the next frame replaces it; every question that is
due on a frame waits for an answer until just before the frame's deadline. An answer from a frame answers what is due on
that frame and on all before it; at the deadline the last answer is held instead, with its age. So answers come in the
frames' order, none is lost, and nothing grows with the load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace

from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Latency, Level

MOST_DUE = 512
"""Of one watch: frames between capture and deadline. A camera that outruns this is thinned out, and said to be."""

MOST_GUARD = 0.25
"""Share of a budget that may be kept back for a late wake-up. Of a budget of 3.2 ms, with a frame every 4.2 ms,
0.07 % were missed at 0.25, 0.17 % at 0.2; at 0.35 0.02 %, but many answers were held that would have been in time."""

_NEAR, _REMEMBERED = 2.0, 16
"""A turn is near that is so many looks away, of which the newest ones count."""


@dataclass(frozen=True)
class Watch:
    """A question that is asked again and again.

    Attributes:
        name: unique.
        camera: whose frames it is about.
        budget_ms: from a frame's capture to the answer.
        every_ms: least time between two frames that it is asked about; 0 asks about every frame.
        priority: share of the machine, relative to others', where there is too little for all.
        on_motion: whether it is due only where something moved, which the camera's frames come with.
        asked: what is asked; with another one it is another watch, of which nothing is known yet.
    """

    name: str
    camera: str
    budget_ms: float
    every_ms: float = 0.0
    priority: float = 1.0
    on_motion: bool = False
    asked: object = field(default=None, hash=False)


@dataclass(frozen=True)
class Due:
    """A question about a frame that has to be answered."""

    watch: Watch
    index: int
    captured_at: float

    def hold_at(self, guard_s: float) -> float:
        """When an answer has to be held at the latest, so much before the deadline; seconds on the frames' clock."""
        budget_s = self.watch.budget_ms / 1e3
        return self.captured_at + budget_s - min(guard_s, MOST_GUARD * budget_s)


@dataclass(frozen=True)
class Found:
    """An answer, and the frame that it was found on."""

    answer: Answer
    index: int
    captured_at: float


@dataclass(frozen=True)
class Told:
    """An answer that is given.

    Attributes:
        camera, watch: names.
        index: of the frame that it is about.
        captured_at: of that frame.
        answer: its latency counts from that frame's capture.
        age_frames: how many frames before that one it was found on.
        age_ms: since the frame that it was found on was captured.
    """

    camera: str
    watch: str
    index: int
    captured_at: float
    answer: Answer
    age_frames: int
    age_ms: float

    @property
    def is_late(self) -> bool:
        """Whether it missed its deadline."""
        return not self.answer.latency.met


@dataclass
class Pending:
    """One watch between frames: what is due, what was found last, and whether something moved since it was due."""

    watch: Watch
    due: deque[Due] = field(default_factory=deque)
    last: Found | None = None
    next_at: float = float("-inf")
    thinned: int = 0
    moved: bool = True

    def arrive(self, frame: Frame, *, moved: bool = True) -> bool:
        """Whether the watch is due on this frame."""
        self.moved |= moved  # what moves in a pause is looked at after it
        if frame.captured_at < self.next_at or (self.watch.on_motion and not self.moved):
            return False
        self.moved = False
        self.next_at = frame.captured_at + self.watch.every_ms / 1e3
        if len(self.due) == MOST_DUE:
            self.due.popleft()
            self.thinned += 1
        self.due.append(Due(self.watch, frame.index, frame.captured_at))
        return True

    def answered(self, found: Found, now: float) -> Iterator[Told]:
        """Keep an answer, and give it to all that is due up to its frame; an older one than the last is dropped."""
        if self.last is not None and found.index < self.last.index:
            return
        self.last = found
        while self.due and self.due[0].index <= found.index:
            yield _told(self.due.popleft(), found, now, held=False)

    def expired(self, now: float, guard_s: float) -> Iterator[Told]:
        """Give the last answer to all whose deadline is no more than ``guard_s`` away; without one they wait on."""
        while self.last is not None and self.due and self.due[0].hold_at(guard_s) <= now:
            yield _told(self.due.popleft(), self.last, now, held=True)


class Lane:
    """A camera's frames and watches.

    Args:
        camera: its name.
        watches: of this camera.

    Attributes:
        served_ms: time that it had, over its priority; whoever has least is next.
        replaced: frames that a newer one replaced before anybody looked.
    """

    def __init__(self, camera: str, watches: Sequence[Watch]) -> None:
        self.camera = camera
        self.pending: dict[str, Pending] = {}
        self.served_ms, self.replaced = 0.0, 0
        self._slot: Frame | None = None
        self._wanted: set[str] = set()
        self.watch(watches)

    def watch(self, watches: Sequence[Watch]) -> None:
        """Replace its watches; one that stays the same keeps what it knows."""
        kept = {name: pending for name, pending in self.pending.items() if pending.watch in watches}
        self.pending = {watch.name: kept.get(watch.name) or Pending(watch) for watch in watches}

    def anew(self) -> Lane:
        """The same watches, which know nothing yet, of a camera that shows something else now."""
        lane = Lane(self.camera, [pending.watch for pending in self.pending.values()])
        lane.served_ms, lane.replaced = self.served_ms, self.replaced
        for name, pending in self.pending.items():
            lane.pending[name].thinned = pending.thinned
        return lane

    @property
    def priority(self) -> float:
        """The largest of its watches'."""
        return max((pending.watch.priority for pending in self.pending.values()), default=1.0)

    @property
    def is_waiting(self) -> bool:
        """Whether there is a frame to look at."""
        return self._slot is not None

    def arrive(self, frame: Frame, moved: Container[str] = ()) -> bool:
        """A frame was captured; whether there is now something to look at.

        Args:
            frame: its index larger than those before.
            moved: names of watches that something moved for.
        """
        due = {name for name, pending in self.pending.items() if pending.arrive(frame, moved=name in moved)}
        wanted = self._wanted | due
        if not wanted:
            return False
        self.replaced += self._slot is not None
        self._slot, self._wanted = frame, wanted
        return True

    def take(self) -> tuple[Frame, list[Watch]]:
        """The newest frame and what is wanted of it, most important first; only if ``is_waiting``."""
        assert self._slot is not None
        frame, self._slot = self._slot, None
        wanted = [self.pending[name].watch for name in self._wanted if name in self.pending]
        self._wanted = set()
        return frame, sorted(wanted, key=lambda watch: (-watch.priority, watch.name))

    def give_back(self, frame: Frame, watches: Sequence[Watch]) -> None:
        """Wait once more with what was taken; a newer frame that came meanwhile replaces it."""
        self.replaced += self._slot is not None
        self._slot = frame if self._slot is None else self._slot
        self._wanted |= {watch.name for watch in watches}

    def next_hold(self, guard_s: float) -> float:
        """When the next answer has to be held; infinity if there is none to hold, or nothing is due."""
        kept = (pending for pending in self.pending.values() if pending.last is not None)
        return min((pending.due[0].hold_at(guard_s) for pending in kept if pending.due), default=float("inf"))

    def expired(self, now: float, guard_s: float) -> Iterator[Told]:
        """See ``Pending.expired``."""
        for pending in self.pending.values():
            yield from pending.expired(now, guard_s)

    @property
    def waiting(self) -> int:
        """How many answers are due."""
        return sum(len(pending.due) for pending in self.pending.values())


class Turns:
    """Which camera is looked at next: weighted fair queuing over what each has cost.

    (Demers, Keshav, Shenker 1989, "Analysis and simulation of a fair queueing algorithm".)
    """

    def __init__(self) -> None:
        self._now_ms = self._usual_ms = 0.0

    def next(self, lanes: Sequence[Lane]) -> Lane | None:
        """The waiting lane that had least; None if none is waiting."""
        waiting = [lane for lane in lanes if lane.is_waiting]
        if not waiting:
            return None
        lane = min(waiting, key=lambda lane: max(lane.served_ms, self._now_ms))
        # Who was idle does not save up a claim to the whole machine.
        lane.served_ms = self._now_ms = max(lane.served_ms, self._now_ms)
        return lane

    def beside(self, first: Lane, lanes: Sequence[Lane], most: int) -> list[Lane]:
        """Waiting lanes that may be looked at together with the first, whose turn it is.

        Their own turn has to be near: where there is too little for all, a lane of low priority must not come along
        every time.
        """
        near_ms = first.served_ms + _NEAR * self._usual_ms
        waiting = [lane for lane in lanes if lane.is_waiting and lane is not first and lane.served_ms <= near_ms]
        near = sorted(waiting, key=lambda lane: lane.served_ms)[:most]
        for lane in near:
            lane.served_ms = max(lane.served_ms, self._now_ms)
        return near

    def spent(self, lane: Lane, ms: float) -> None:
        """It was looked at for so long."""
        lane.served_ms += ms / lane.priority
        self._usual_ms += (ms - self._usual_ms) / (_REMEMBERED if self._usual_ms else 1)


def _told(due: Due, found: Found, now: float, *, held: bool) -> Told:
    spent = {} if held else found.answer.latency.stages_ms
    latency = Latency(spent, (now - due.captured_at) * 1e3, due.watch.budget_ms)
    answer = replace(found.answer, latency=latency, level=Level.HELD if held else found.answer.level)
    age = max(0, due.index - found.index)
    return Told(
        due.watch.camera, due.watch.name, due.index, due.captured_at, answer, age, (now - found.captured_at) * 1e3
    )
