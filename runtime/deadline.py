"""The clock of one answer, which starts when the frame was captured, and the pace that plans are made by."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.answer import Latency

_NEWEST, _LATEST, _QUANTILE = 64, 5, 0.9
"""Runs that a pace is made of, those that tell a drift, and the share that a bound covers."""


class Deadline:
    """Times the stages of one answer against its budget.

    Args:
        budget_ms: what is allowed from capture to answer.
        started: ``captured_at`` of the frame, ``time.monotonic()`` seconds.
        paces: what stages usually take; each that runs is added.

    Raises:
        UsageError: a budget that is not above zero, or a start that is yet to come: on another clock every answer
            would seem to be in time.
    """

    def __init__(self, budget_ms: float, started: float, paces: Paces | None = None) -> None:
        self.budget_ms = check_budget(budget_ms)
        self._paces = Paces() if paces is None else paces
        if not isinstance(started, int | float) or not started <= time.monotonic():
            raise UsageError(
                "frame",
                expected="a captured_at that has passed on time.monotonic()'s clock",
                got=f"{started}",
                do="leave it out, or take time.monotonic() when the frame is captured",
            )
        self._started = started
        self._stages_ms: dict[str, float] = {}

    def stage(self, name: str) -> Stage:
        """Time a stage in a ``with``; one that runs again is added up, one that fails sets no pace."""
        return Stage(self, self._paces[name], name)

    def spent(self, name: str, ms: float) -> None:
        """Add what a stage took elsewhere, for several answers at once."""
        self._stages_ms[name] = self._stages_ms.get(name, 0.0) + ms

    def fits(self, *stages: str) -> bool:
        """Whether these stages, one after the other, would most likely end in time."""
        return self.left_ms() >= sum(self._paces[name].bound_ms for name in stages)

    def left_ms(self) -> float:
        """What is left of the budget; negative when it is spent."""
        return self.budget_ms - self._spent_ms()

    def latency(self) -> Latency:
        """The account so far."""
        return Latency(dict(self._stages_ms), self._spent_ms(), self.budget_ms)

    def _spent_ms(self) -> float:
        return (time.monotonic() - self._started) * 1e3


class Stage:
    """A stage of an answer while it runs; no generator, which would take thrice as long.

    Args:
        deadline: whose account it goes on.
        pace: that it adds to.
        name: of the stage.
    """

    __slots__ = ("_began", "_deadline", "_name", "_pace")

    def __init__(self, deadline: Deadline, pace: Pace, name: str) -> None:
        self._deadline, self._pace, self._name = deadline, pace, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ms = (time.perf_counter() - self._began) * 1e3
        self._deadline.spent(self._name, ms)
        if kind is None:
            self._pace.took(ms)


class Pace:
    """What something usually takes on this machine, by its newest runs. Any thread may use it.

    Args:
        first_ms: what is known before the first run.
    """

    def __init__(self, first_ms: float | None = None) -> None:
        self._spent_ms = deque[float]([] if first_ms is None else [first_ms], maxlen=_NEWEST)
        self._lock = threading.Lock()

    @contextmanager
    def run(self) -> Iterator[None]:
        """Measure one run; one that fails does not count."""
        began = time.perf_counter()
        yield
        self.took((time.perf_counter() - began) * 1e3)

    def took(self, ms: float) -> None:
        """One more run."""
        with self._lock:
            self._spent_ms.append(ms)

    @property
    def ms(self) -> float:
        """The median, in milliseconds; 0 before the first run."""
        with self._lock:
            return statistics.median(self._spent_ms) if self._spent_ms else 0.0

    @property
    def bound_ms(self) -> float:
        """What only one run in ten takes longer than, in milliseconds; 0 before the first run.

        The newest runs alone count once they are slower than that: a machine that slowed down stays slow for a while.
        """
        with self._lock:
            known = list(self._spent_ms)
        if not known:
            return 0.0
        return max(sorted(known)[int(_QUANTILE * (len(known) - 1))], statistics.median(known[-_LATEST:]))


class Paces:
    """The pace of every stage, by its name."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def __getitem__(self, stage: str) -> Pace:
        return self._paces.setdefault(stage, Pace())

    def start(self, stage: str, first_ms: float) -> None:
        """What a stage is known to take before its first run."""
        self._paces[stage] = Pace(first_ms)


def check_budget(budget_ms: float) -> float:
    """The budget; raises UsageError unless it is above zero."""
    given: Any = budget_ms
    if not isinstance(given, Real) or not float(given) > 0:
        raise UsageError(
            "budget",
            expected="milliseconds above zero",
            got=f"{given} ms" if isinstance(given, Real) else repr(given),
            do="give for instance --budget-ms 40",
        )
    return float(budget_ms)
