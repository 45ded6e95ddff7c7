"""A trace of every answer's life, to be looked at in a browser (chrome://tracing, https://ui.perfetto.dev)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge_ravlm.errors import StorageError
from edge_ravlm.files import storing, write_file
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.watching.lanes import Told, Watch

log = logging.getLogger(__name__)

MOST_EVENTS = 500_000
"""Some hundred megabytes; a trace is for minutes, not for days."""


class Trace:
    """Events in Chrome's trace format, written when it is closed.

    A camera has a row with a span from each capture to its answer, and each looking thread one with the stages.

    Args:
        path: of the file; None keeps nothing.

    Attributes:
        left_out: events beyond ``MOST_EVENTS``.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.left_out = 0
        self._path, self._events, self._lock = path, list[dict[str, Any]](), threading.Lock()
        if path is not None:
            _check(path)
            _write(path, [])  # now, and not after hours

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            _write(self._path, self._events)
        if self.left_out:
            log.warning("trace '%s': %d events more than it holds", self._path, self.left_out)

    @contextmanager
    def looking(self, watch: Watch, frame: Frame) -> Iterator[Callable[[Answer], object]]:
        """Around an answer's making; what it yields is called with the answer.

        Stages follow one another without gaps in the trace; in truth there are some microseconds between them.
        """
        began = time.monotonic()
        answers = list[Answer]()
        yield answers.append
        if self._path is None or not answers:
            return
        row = threading.current_thread().name
        self._add(watch.name, row, began, time.monotonic(), {"frame": frame.index})
        at = began
        for stage, spent_ms in answers[0].latency.stages_ms.items():
            self._add(stage, row, at, at + spent_ms / 1e3, {})
            at += spent_ms / 1e3

    def told(self, told: Told) -> None:
        """An answer was given."""
        if self._path is not None:
            end = told.captured_at + told.answer.latency.total_ms / 1e3
            more = {"frame": told.index, "answer": told.answer.text, "level": told.answer.level.value}
            row = f"{told.camera}: {told.watch}"
            self._add("late" if told.is_late else told.answer.level.value, row, told.captured_at, end, more)

    def _add(self, name: str, row: str, start: float, end: float, more: dict[str, Any]) -> None:
        event = {"name": name, "ph": "X", "ts": start * 1e6, "dur": (end - start) * 1e6, "pid": 1, "tid": row}
        with self._lock:
            if len(self._events) < MOST_EVENTS:
                self._events.append({**event, "args": more})
            else:
                self.left_out += 1


def _check(path: Path) -> None:
    """Nothing but an earlier trace is written over."""
    begins = b'{"traceEvents":'
    try:
        if not path.exists():
            return
        got = "a file that is no trace" if path.is_file() else "no file"
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(begins)) in (begins, b""):
                    return
    except OSError as error:
        got = error.strerror or str(error)
    raise StorageError(f"trace '{path}'", expected="a new file, or an earlier trace", got=got, do="choose another name")


def _write(path: Path, events: list[dict[str, Any]]) -> None:
    rows = {event["tid"]: number for number, event in enumerate({event["tid"]: event for event in events}.values())}
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": row}}
        for row, number in rows.items()
    ]
    shown = [{**event, "tid": rows[event["tid"]]} for event in events]
    with storing(f"trace '{path}'", expected="a file to write", do="check the path"):
        write_file(path, msgspec.json.encode({"traceEvents": [*names, *shown], "displayTimeUnit": "ms"}))
