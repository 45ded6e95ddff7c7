"""The clock of one answer, which starts when the frame was captured, and the pace that plans are made by."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.answer import Latency


class Deadline:
    """Times the stages of one answer against its budget.

    Args:
        budget_ms: what is allowed from capture to answer.
        started: ``captured_at`` of the frame, ``time.monotonic()`` seconds.

    Raises:
        UsageError: a budget that is not above zero, or a start that is yet to come: on another clock every answer
            would seem to be in time.
    """

    def __init__(self, budget_ms: float, started: float) -> None:
        self.budget_ms = check_budget(budget_ms)
        if not started <= time.monotonic():
            raise UsageError(
                "frame",
                expected="a captured_at that has passed on time.monotonic()'s clock",
                got=f"{started}",
                do="leave it out, or take time.monotonic() when the frame is captured",
            )
        self._started = started
        self._stages_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; one that runs again is added up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1e3
            self._stages_ms[name] = self._stages_ms.get(name, 0.0) + spent

    def left_ms(self) -> float:
        """What is left of the budget; negative when it is spent."""
        return self.budget_ms - self._spent_ms()

    def latency(self) -> Latency:
        """The account so far."""
        return Latency(dict(self._stages_ms), self._spent_ms(), self.budget_ms)

    def _spent_ms(self) -> float:
        return (time.monotonic() - self._started) * 1e3


class Pace:
    """What something usually takes on this machine: the median of its newest runs. Any thread may use it."""

    def __init__(self) -> None:
        self._spent_ms: deque[float] = deque(maxlen=32)
        self._lock = threading.Lock()

    @contextmanager
    def run(self) -> Iterator[None]:
        """Measure one run; one that fails does not count."""
        start = time.perf_counter()
        yield
        with self._lock:
            self._spent_ms.append((time.perf_counter() - start) * 1e3)

    @property
    def ms(self) -> float:
        """Milliseconds; 0 before the first run."""
        with self._lock:
            return statistics.median(self._spent_ms) if self._spent_ms else 0.0


def check_budget(budget_ms: float) -> float:
    """The budget; raises UsageError unless it is above zero."""
    if not budget_ms > 0:
        raise UsageError(
            "budget",
            expected="milliseconds above zero",
            got=f"{budget_ms} ms",
            do="give for instance --budget-ms 40",
        )
    return float(budget_ms)
