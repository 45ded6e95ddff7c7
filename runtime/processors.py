"""Which processors the threads of one model's run keep to, the caller's among them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager


def usable() -> list[int]:
    """Numbers of the processors that this thread may use, ascending; none where the system does not tell."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return []


def dealt(threads: int) -> list[list[int]]:
    """Deal out the processors that this thread may use, so that threads which work together never share one.

    Threads of a run wait for each other at every layer. Where they sleep meanwhile, Linux likes to wake one where its
    waker runs: after a pause of 30 ms or more between runs, two threads were found on one of two processors, with the
    other one idle. Where they wait awake, two on one processor take the time from each other. With a processor for each
    they can do so: a layer ends sooner than a thread is woken.

    Returns:
        Numbers of processors, one list for each thread; none where there are too few, or the system does not tell.
    """
    there = usable()
    return [there[first::threads] for first in range(threads)] if 1 < threads <= len(there) else []


@contextmanager
def kept_to(processors: Collection[int]) -> Iterator[None]:
    """Keep this thread to some of the processors that it may use.

    It runs where it likes where it may use none of those, or where the system forbids to say so, as containers may.
    """
    before = usable() if processors else []
    hand = set(before).intersection(processors)
    if len(hand) in (0, len(before)) or not _moved(hand):
        yield
        return
    try:
        yield
    finally:
        _moved(before)


def _moved(processors: Collection[int]) -> bool:
    try:
        os.sched_setaffinity(0, processors)
    except OSError:
        return False
    return True
