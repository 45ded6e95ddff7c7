"""One system in a process of its own, told what to do by lines of JSON.

    python -m memory.worker NAME FOLDER DATA

NAME is one of ``systems.SYSTEMS``, FOLDER holds its files, DATA is what ``data.kept`` made. Each line on stdin is an
object with the name of one of ``Worker``'s methods as ``do`` and its arguments; each is answered by one on stdout.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from memory.data import DataSet, K, Vectors, recall
from memory.systems import SYSTEMS

WARM_UP = 20
"""Searches before those that are timed: another process may have had the processor's caches meanwhile."""

ADD_EVERY_S = 0.01


def resident_mb(status: str) -> dict[str, float]:
    """Memory of a process in millions of bytes: ``anon`` is its own, ``file`` can be dropped and read again.

    Args:
        status: the text of ``/proc/PID/status``.
    """
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {name: int(lines[key].split()[0]) * 1024 / 1e6 for name, key in (("anon", "RssAnon"), ("file", "RssFile"))}


class Worker:
    """What the process can be told to do."""

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        self._system = SYSTEMS[name].make()
        self._folder = folder
        self._data = DataSet.load(data)

    def build(self) -> dict[str, float]:
        """Write the system's files; seconds by the clock and of the processor."""
        clock, spent = time.perf_counter(), time.process_time()
        self._system.build(self._data.vectors, self._folder)
        return {"build_s": time.perf_counter() - clock, "build_cpu_s": time.process_time() - spent}

    def start(self, setting: int, seconds: float) -> dict[str, float]:
        """Open, search once, search on for a while; milliseconds, and by how many megabytes the process has grown."""
        before = _resident()
        opened_ms = self._open(setting)
        first_ms = self._timed(self._data.queries[0])[1]
        for query in _while_time_is_left(self._data.queries[1:], seconds):
            self._system.search(query, K)
        after = _resident()
        return {
            "open_ms": opened_ms,
            "first_search_ms": first_ms,
            "anon_mb": after["anon"] - before["anon"],
            "file_mb": after["file"] - before["file"],
        }

    def open(self, setting: int) -> dict[str, float]:
        """Open; milliseconds."""
        return {"open_ms": self._open(setting)}

    def search(self, setting: int, first: int, last: int, seconds: float) -> dict[str, Any]:
        """Search for queries first to last, or for so many of them as that time allows; ms each, and the recall."""
        self._system.aim(setting)
        queries, truth = self._data.queries, self._data.truth
        for query in _while_time_is_left(queries[-WARM_UP:], seconds / 4):
            self._system.search(query, K)
        timed = [self._timed(query) for query in _while_time_is_left(queries[first:last], seconds)]
        found, spent_ms = zip(*timed, strict=True)
        return {"ms": spent_ms, "recall10": recall(found, truth[first : first + len(found)])}

    def search_while_adding(self, setting: int, seconds: float) -> dict[str, Any]:
        """Search on for so long while another thread adds a vector every ADD_EVERY_S; ms each, and how many came."""
        self._open(setting)
        for query in _while_time_is_left(self._data.queries[:WARM_UP], seconds):
            self._system.search(query, K)
        done = threading.Event()
        added = 0

        def add() -> None:
            nonlocal added
            while not (added and done.wait(ADD_EVERY_S)):
                self._system.add(self._data.queries[added % len(self._data.queries)])
                added += 1

        adding = threading.Thread(target=add)
        adding.start()
        endless = itertools.cycle(self._data.queries)
        spent_ms = [self._timed(query)[1] for query in _while_time_is_left(endless, seconds)]
        done.set()
        adding.join()
        return {"ms": spent_ms, "added": added}

    def _open(self, setting: int) -> float:
        start = time.perf_counter()
        self._system.open(self._folder)
        self._system.aim(setting)
        return (time.perf_counter() - start) * 1e3

    def _timed(self, query: Vectors) -> tuple[list[int], float]:
        start = time.perf_counter()
        found = self._system.search(query, K)
        return found, (time.perf_counter() - start) * 1e3


def _while_time_is_left(queries: Iterable[Vectors], seconds: float) -> Iterator[Vectors]:
    """At least one of them."""
    end = time.perf_counter() + seconds
    for query in queries:
        yield query
        if time.perf_counter() >= end:
            return


def _resident() -> dict[str, float]:
    return resident_mb(Path("/proc/self/status").read_text(encoding="ascii"))


def main() -> int:
    """Answer until stdin ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        name, folder, data = sys.argv[1:]
        try:
            worker = Worker(name, Path(folder), Path(data))
        except ModuleNotFoundError as error:
            sys.stderr.write(f"no package {error.name}\n")
            return 1
        for line in sys.stdin:
            arguments = json.loads(line)
            answers.write(json.dumps(getattr(worker, arguments.pop("do"))(**arguments)) + "\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
