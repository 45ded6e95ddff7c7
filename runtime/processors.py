"""Which processors the threads of one model's run keep to."""

from __future__ import annotations

import os


def dealt(threads: int) -> list[list[int]]:
    """Deal out the processors that this thread may use, so that threads which work together never share one.

    Threads of a run wake each other at every layer, and Linux likes to wake a thread where its waker runs. After a
    pause of 30 ms or more between runs, two threads were found on one of two processors, with the other one idle: a
    look took 13.3 ms, and 8.1 ms with a processor for each (`benchmarks/spikes.py`).

    Returns:
        Numbers of processors, one list for each thread; none where there are too few, or the system does not tell.
    """
    try:
        there = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return []
    return [there[first::threads] for first in range(threads)] if 1 < threads <= len(there) else []
