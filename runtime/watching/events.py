"""From answers to events: what changed and stayed so, and not again too soon."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

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
    """One watch's events.

    Args:
        answers: that are events; all are, without any.
        agree: (n, m): of the last m answers n have to be the same.
        cool_down_s: least time between two events with the same answer.
    """

    def __init__(
        self, answers: tuple[str, ...] = (), agree: tuple[int, int] = (1, 1), cool_down_s: float = 0.0
    ) -> None:
        self._answers, self._needed, self._cool_down_s = frozenset(answers), agree[0], cool_down_s
        self._newest: deque[str] = deque(maxlen=agree[1])
        self._state: str | None = None
        self._told_at: dict[str, float] = {}

    def add(self, told: Told) -> Event | None:
        """The event that this answer completes, if it does. Held answers say nothing new."""
        if told.age_frames:
            return None
        self._newest.append(told.answer.text)
        answer, count = Counter(self._newest).most_common(1)[0]
        if count < self._needed or answer == self._state or answer != told.answer.text:
            return None
        before, self._state = self._state, answer
        last = self._told_at.get(answer)
        if self._answers and answer not in self._answers:
            return None
        if last is not None and told.captured_at - last < self._cool_down_s:
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
