"""From answers to events: what changed and stayed so, and not again too soon."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from edge_ravlm.runtime.questions import gist
from edge_ravlm.runtime.watching.lanes import Told


@dataclass(frozen=True)
class Event:
    """An answer that became another one.

    Attributes:
        told: the answer that decided it.
        before: the answer that held until then; None at first.
    """

    told: Told
    before: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**as_dict(self.told), "before": self.before}


class Steady:
    """One watch's events. Answers that differ in case, spacing or full stop alone are the same.

    Args:
        answers: that are events; all are, without any.
        agree: (n, m): of the last m answers n have to be the same.
        cool_down_s: least time between two events with the same answer; one that still holds then is an event then.

    Attributes:
        settled: whether the last answer was found on its own frame, and holds; the next one tells nothing new then,
            unless something moves.
        turned: whether with the last answer another one is what ``agree`` say, be it an event or not, or too soon for
            one.
    """

    def __init__(
        self, answers: tuple[str, ...] = (), agree: tuple[int, int] = (1, 1), cool_down_s: float = 0.0
    ) -> None:
        self._answers, self._needed, self._cool_down_s = frozenset(map(gist, answers)), agree[0], cool_down_s
        self._newest: deque[str] = deque(maxlen=agree[1])
        self._state: str | None = None
        self._agreed: str | None = None
        self._told_at: dict[str, float] = {}
        self.settled = self.turned = False

    def add(self, told: Told) -> Event | None:
        """The event that this answer completes, if it does. Held answers say nothing new."""
        self.settled = self.turned = False
        if told.age_frames:
            return None
        answer = gist(told.answer.text)
        self._newest.append(answer)
        agreed = self._newest.count(answer) >= self._needed
        if agreed:
            self.turned, self._agreed = answer != self._agreed, answer
        before = self._state
        if before is not None and answer == gist(before):
            self.settled = True
            return None
        if not agreed:
            return None
        is_event = not self._answers or answer in self._answers
        if is_event and told.captured_at - self._told_at.get(answer, float("-inf")) < self._cool_down_s:
            return None
        self._state, self.settled = told.answer.text, True
        if not is_event:
            return None
        self._told_at[answer] = told.captured_at
        return Event(told, before)


def as_dict(told: Told) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "camera": told.camera,
        "watch": told.watch,
        "frame": told.index,
        "age_frames": told.age_frames,
        "age_ms": round(told.age_ms, 3),
        **told.answer.as_dict(),
    }
