"""What a process that keeps deadlines asks of its machine; what can be given back is given back."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_ravlm.runtime.processors import usable

log = logging.getLogger(__name__)

NICE = -10
"""Beside a process that takes all it can get, one of this niceness has nine tenths of a shared core (its weight is
9,548 to 1,024, sched(7)), and does not lose it in the middle of an answer."""

_SWITCH_S = 0.0005
"""How long a thread that has Python's lock may go on while another waits; Python's own 5 ms are half a budget."""

_MCL_CURRENT, _MCL_FUTURE = 1, 2

_M_ARENA_MAX, _ARENAS = -8, 2
"""Pools of main memory: glibc would give each thread one of its own, and what passes from one to another leaves holes
in all of them."""


@contextmanager
def on_time(nice: int = NICE) -> Iterator[None]:
    """Let answers be stopped by as little as possible: not by other processes, threads, or the garbage collector.

    Args:
        nice: see ``precedence``.
    """
    with precedence(nice), _short_switches(), unhurried_collection():
        yield


@contextmanager
def precedence(nice: int) -> Iterator[None]:
    """Run all threads of this process, and those that they start, at a niceness; where that is not allowed, go on.

    Threads at another niceness than 0 stay there: somebody wished so. Below 0 it takes root, CAP_SYS_NICE, or a limit
    (``LimitNICE`` of systemd, ``ulimit -e``).
    """
    if nice and not sum(_move(task, 0, nice) for task in _tasks()):
        log.info("nice = %d: not allowed", nice)
    try:
        yield
    finally:
        for task in _tasks() if nice else ():
            _move(task, nice, 0)


def _move(task: int, before: int, after: int) -> bool:
    """Whether a task was at a niceness, and got another one."""
    with suppress(ProcessLookupError, PermissionError):  # it ended meanwhile; or it may not
        if os.getpriority(os.PRIO_PROCESS, task) == before:
            os.setpriority(os.PRIO_PROCESS, task, after)
            return True
    return False


def _tasks() -> list[int]:
    """Threads of this process; the calling one alone where the system does not tell."""
    try:
        return [int(task.name) for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return [0]


@contextmanager
def _short_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def unhurried_collection() -> Iterator[None]:
    """Keep Python's garbage collector from stopping an answer: what is there now is never looked at again.

    New cycles are still collected, among the few objects that were made since.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back() -> None:
    """Return free memory to the system: of what a camera takes to connect, or a burst of frames, glibc keeps all.

    Takes 0.2 to 4 ms.
    """
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def hurry() -> None:
    """Let this thread go before all others, where that is allowed: it sleeps nearly always, but must wake on time."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_RR, os.sched_param(1))


def stay(processors: Collection[int]) -> None:
    """Keep this thread, and those that it starts, on some processors, if there are any and the system allows."""
    if not processors:
        return
    try:
        os.sched_setaffinity(0, processors)
    except (OSError, AttributeError) as error:
        log.warning("processors %s: %s; check `pin`", sorted(processors), getattr(error, "strerror", error))


@contextmanager
def settled(pin: Collection[int], *, lock_memory: bool) -> Iterator[None]:
    """Stay on some processors, and in main memory, as far as that is allowed; and let memory not grow.

    Args:
        pin: processors of this thread, and of all that are started meanwhile; all without any.
        lock_memory: whether what is mapped shall stay in main memory.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # another C library than glibc
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
    before = usable() if pin else []
    stay(pin)
    if lock_memory and libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        log.warning("lock_memory: not allowed; raise the limit `ulimit -l`")
    try:
        yield
    finally:
        stay(before)
        if lock_memory:
            libc.munlockall()
