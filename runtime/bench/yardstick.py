"""A fixed piece of work that is done again and again: times are told as multiples of it, too."""

from __future__ import annotations

import time

import numpy as np

_SIDE, _EVERY_S = 320, 0.25


class Yardstick:
    """How fast the machine is just now.

    A virtual machine's speed changes by up to two times within minutes. The work is a product of two float32 matrices
    (in the numerical library's threads) and a copy that leaves the first-level cache; about a millisecond.

    Attributes:
        ms: what it took the last time.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._left, self._right = rng.standard_normal((2, _SIDE, _SIDE), np.float32)
        self._out, self._copy = np.empty_like(self._left), np.empty_like(self._left)
        self.ms = self._again = 0.0
        for _ in range(5):
            self._measure()

    def look(self) -> float:
        """Milliseconds; measured anew when the last time is a quarter of a second ago."""
        if time.perf_counter() >= self._again:
            self._measure()
        return self.ms

    def _measure(self) -> None:
        began = time.perf_counter()
        np.matmul(self._left, self._right, out=self._out)
        np.copyto(self._copy, self._out)
        now = time.perf_counter()
        self.ms, self._again = (now - began) * 1e3, now + _EVERY_S
