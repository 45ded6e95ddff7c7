"""What a process asks of its machine: it gets it, does without where it may not, and gives it back."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import textwrap

import pytest

from edge_ravlm.runtime.watching.process import on_time, settled, unhurried_collection

NOBODY = 65534
HEAD = """
import logging, os, sys, threading
from edge_ravlm.runtime.watching.process import precedence
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
stop = threading.Event()
def nice():
    return sorted({os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")})
def start():
    threading.Thread(target=stop.wait).start()
"""


def _said(body: str) -> list[str]:
    """What a process of its own says: this one's threads are everybody's."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_threads_of_before_and_of_later_go_first_and_back() -> None:
    said = _said("""
        start()
        with precedence(5):
            start()
            print(nice())
        print(nice())
        stop.set()
    """)
    go_back = "import os; os.nice(5); os.setpriority(os.PRIO_PROCESS, 0, 0)"  # as root of a container may not either
    may_go_back = subprocess.run([sys.executable, "-c", go_back], capture_output=True, check=False).returncode == 0
    assert said == ["[5]", "[0]" if may_go_back else "[5]"]


def test_a_thread_that_somebody_set_stays() -> None:
    said = _said("""
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        with precedence(5):
            print(nice())
        print(nice())
    """)
    assert said[-1] == "[7]"
    assert "[7]" in said[-2]


def test_where_it_is_not_allowed_everything_goes_on() -> None:
    said = _said(f"""
        if os.geteuid() == 0:
            os.setuid({NOBODY})
        with precedence(-10):
            print(nice())
    """)
    assert said == ["nice = -10: not allowed", "[0]"]


def test_a_thread_that_waits_gets_its_turn_soon() -> None:
    before = sys.getswitchinterval()
    with on_time(nice=0):
        assert sys.getswitchinterval() < 0.001
    assert sys.getswitchinterval() == before


def test_free_memory_goes_back_to_the_system() -> None:
    said = _said("""
        import ctypes
        from edge_ravlm.runtime.watching.process import give_back
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        pieces = [libc.malloc(64 << 10) for _ in range(500)]
        for piece in pieces:
            ctypes.memset(piece, 1, 64 << 10)
        for piece in pieces[:-1]:  # the last one keeps the rest from being the end of the heap
            libc.free(piece)
        before = resident()
        give_back()
        print(before - resident() > 20 << 20)
    """)
    assert said == ["True"]


def test_the_collector_leaves_alone_what_was_there() -> None:
    before = gc.get_freeze_count()
    with unhurried_collection():
        assert gc.get_freeze_count() > before
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_it_stays_on_its_processors_until_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with settled([one], lock_memory=False):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before
    with caplog.at_level(logging.WARNING), settled([4000], lock_memory=False):
        assert os.sched_getaffinity(0) == before
    assert "processors [4000]" in caplog.text
