"""The learning rate of both trainings."""

from __future__ import annotations

import math


def warm_cosine(done: int, steps: int, warm_up: float) -> float:
    """The rate of the update after ``done`` of ``steps``, as a share of the largest: a line up, a cosine down to zero.

    Args:
        done: updates so far.
        steps: updates in all.
        warm_up: share of them in which the rate rises.
    """
    warm = max(1, round(warm_up * steps))
    if done < warm:
        return (done + 1) / warm
    return (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm))) / 2
