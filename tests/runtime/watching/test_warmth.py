"""Processes that keep the processors awake: they yield to all others, and nothing is left of them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_ravlm.runtime.watching.warmth import awake

Until = Callable[[Callable[[], bool]], None]
PROCESSORS = sorted(os.sched_getaffinity(0))


def children(of: int) -> list[int]:
    """Processes whose parent this is, those that ended without being asked for left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == of and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_each_processor_has_one_that_yields_to_everything_else(until: Until) -> None:
    before = set(children(os.getpid()))
    with awake(PROCESSORS):
        mine = set(children(os.getpid())) - before
        assert len(mine) == len(PROCESSORS)
        until(lambda: all(os.sched_getscheduler(process) == os.SCHED_IDLE for process in mine))
        assert sorted(min(os.sched_getaffinity(process)) for process in mine) == PROCESSORS
    assert set(children(os.getpid())) == before


def test_they_end_with_their_parent_however_it_ends(until: Until) -> None:
    code = (
        "import sys, time\nfrom edge_ravlm.runtime.watching.warmth import awake\n"
        f"with awake({PROCESSORS[:1]}):\n    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        (child,) = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{child}").exists())


def test_where_no_process_can_be_started_everything_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with caplog.at_level(logging.WARNING), awake([0]):
        pass
    assert "keep_warm: processor 0: No such file" in caplog.text
