"""Where answers go: lines of JSON, written by a thread of their own, for a disk or a pipe may dawdle."""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_ravlm.errors import StorageError

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Lines: minutes of answers. What does not fit is counted, and said."""


class Sink:
    """Appends lines to a file or to stdout.

    Args:
        path: of the file; None is stdout.
        on_broken: called when nobody reads stdout any more; without it, that is said as for every other lost line.

    Attributes:
        dropped: lines that did not fit any more, or that the disk refused.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path | None, on_broken: Callable[[], object] | None = None) -> None:
        self.dropped = 0
        self._on_broken = on_broken
        self._path = path
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
        """Write all that waits, then close."""
        self._waiting.put(None)
        self._thread.join()
        if self._path is not None:
            self._file.close()

    def _write(self) -> None:
        while (row := self._waiting.get()) is not None:
            self._line(msgspec.json.encode(row, enc_hook=str).decode() + "\n")
        self._line("")

    def _line(self, text: str) -> None:
        try:
            self._file.write(text)
            if self._waiting.empty():
                self._file.flush()
        except BrokenPipeError as error:
            self.dropped += 1
            if self._on_broken is None:
                log.warning("a line was lost: %s", error)
            else:
                self._on_broken()
        except (OSError, ValueError) as error:  # ValueError: it was closed by somebody else
            self.dropped += 1
            log.warning("a line was lost: %s", error)


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"sink '{path}'", expected="a file to append to", got=error.strerror or str(error), do="check the path"
        ) from None
