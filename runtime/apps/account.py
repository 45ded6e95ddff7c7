"""What many answers came to: how they were reached, how long they took, how many came late."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from edge_ravlm.runtime.answer import Answer

RECENT = 10_000
"""Percentiles are taken over this many newest answers, so that a watch may go on for months."""


class Account:
    """Counts answers as they come.

    Attributes:
        answers: how many.
        misses: how many came after their budget.
    """

    def __init__(self, answers: Iterable[Answer] = ()) -> None:
        self.answers = self.misses = 0
        self._levels: Counter[str] = Counter()
        self._recent_ms: deque[float] = deque(maxlen=RECENT)
        for answer in answers:
            self.add(answer)

    def add(self, answer: Answer) -> None:
        """Count one more."""
        self.answers += 1
        self.misses += not answer.latency.met
        self._levels[answer.level.value] += 1
        self._recent_ms.append(answer.latency.total_ms)

    def latency_ms(self) -> dict[str, float] | None:
        """Capture to answer: median and 99th percentile; None before the first answer."""
        if not self._recent_ms:
            return None
        return {f"p{q}": round(float(np.percentile(self._recent_ms, q)), 3) for q in (50, 99)}

    def levels(self) -> dict[str, int]:
        """How many answers were reached at each level, by name."""
        return dict(sorted(self._levels.items()))

    def as_dict(self, budget_ms: float) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "levels": self.levels(),
            "latency_ms": self.latency_ms(),
            "budget_ms": budget_ms,
            "deadline_misses": self.misses,
        }
