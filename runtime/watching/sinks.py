"""Where answers go: lines of JSON, written by a thread of their own, for a disk or a pipe may dawdle."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_ravlm.errors import StorageError

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Lines: minutes of answers. What does not fit is counted, and said."""

CLOSE_S = 3.0
"""How long closing waits for a reader that does not read, or a disk that does not write."""


class Sink:
    """Appends lines to a file or to stdout.

    Args:
        path: of the file; None is stdout.
        on_broken: called when nobody reads stdout any more; without it, that is said as for every other lost line.

    Attributes:
        path: as given.
        dropped: lines that did not fit any more, that the disk refused, or that nobody read.
        stuck: whether a line could not be written to its end before closing had to go on.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path | None, on_broken: Callable[[], object] | None = None) -> None:
        self.dropped, self.stuck = 0, False
        self._unflushed, self._refused = 0, False
        self._on_broken = on_broken
        self.path = path
        self._file: IO[str] = sys.stdout if path is None else _opened(path)
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name=f"sink {path or 'stdout'}", daemon=True)
        self._thread.start()

    def put(self, row: dict[str, Any]) -> None:
        """Write a line soon; returns at once."""
        try:
            self._waiting.put_nowait(row)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write all that waits, then close; a line that cannot be written is waited for ``CLOSE_S`` at most."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_S)
        self._thread.join(CLOSE_S)
        self.stuck = self._thread.is_alive()
        if self.stuck:  # closing the file would wait for the same lock
            self._unflushed += sum(row is not None for row in list(self._waiting.queue))
            self._lost("nobody takes them")
        elif self.path is not None:
            try:
                self._file.close()
            except OSError as error:
                self._lost(error)

    def _write(self) -> None:
        while (row := self._waiting.get()) is not None:
            self._unflushed += 1
            self._line(msgspec.json.encode(row, enc_hook=str).decode() + "\n")
        self._line("")

    def _line(self, text: str) -> None:
        try:
            self._file.write(text)
            if self._waiting.empty():
                self._file.flush()
                self._unflushed, self._refused = 0, False
        except (OSError, ValueError) as error:  # ValueError: it was closed by somebody else
            if isinstance(error, BrokenPipeError) and self._on_broken is not None:
                self._refused = True  # the reader has seen enough, which is no news to anybody
                self._on_broken()
            self._lost(error)

    def _lost(self, why: object) -> None:
        """Count what was not written, and say so once until something is written again."""
        self.dropped += self._unflushed
        self._unflushed = 0
        if not self._refused:
            log.warning("sink '%s': lines are lost: %s", self.path or "stdout", why)
        self._refused = True


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        got = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StorageError(f"sink '{path}'", expected="a file to append to", got=got, do="check the path") from None
