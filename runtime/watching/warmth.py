"""Processors that stay awake between frames.

A processor that slept runs slowly for a while: its governor or its host lowered the clock, its caches went to others.
On a virtual machine of two cores a look took 1.7 times as long a tenth of a second after the last one. Work that yields
to everything else keeps them at full speed; half of the time was found to be enough.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

log = logging.getLogger(__name__)

_SHARE, _PERIOD_S = 0.5, 0.01

# A process of its own for each processor: a thread would hold the interpreter's lock while nobody lets it run. It ends
# with its parent, however that ends.
_AWAKE = """
import os, sys, time
processor, parent, share, period_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
os.sched_setaffinity(0, [processor])
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == parent:
    until = time.perf_counter() + share * period_s
    while time.perf_counter() < until:
        pass
    time.sleep((1 - share) * period_s)
"""


@contextmanager
def awake(processors: Iterable[int]) -> Iterator[None]:
    """Keep these processors awake; where that is not allowed, the log says so and everything goes on."""
    with ExitStack() as stack:
        for processor in processors:
            process = _start(processor)
            if process is not None:
                stack.callback(process.wait)
                stack.callback(process.kill)
        yield


def _start(processor: int) -> subprocess.Popen[bytes] | None:
    arguments = [str(processor), str(os.getpid()), str(_SHARE), str(_PERIOD_S)]
    command = [sys.executable, "-I", "-S", "-c", _AWAKE, *arguments]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        log.warning("keep_warm: processor %d: %s", processor, error.strerror)
        return None
