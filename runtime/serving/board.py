"""What an app said last: kept for whoever looks later, and handed to those who listen."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

KEPT = 200
"""Events that are remembered."""

Row = dict[str, Any]


class Board:
    """Takes answers and events as plain values (``App``'s ``on_answer`` and ``on_event``), from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Row] = {}
        self._events: deque[Row] = deque(maxlen=KEPT)
        self._listeners: list[Callable[[Row | None], object]] = []
        self._closed = False

    def answer(self, row: Row) -> None:
        """A watch was answered."""
        self._answers[row["watch"]] = row

    def event(self, row: Row) -> None:
        """An answer changed, and holds."""
        with self._lock:
            self._events.append(row)
        self._tell(row)

    def close(self) -> None:
        """Let those go who listen, and who begin to later."""
        with self._lock:
            self._closed = True
        self._tell(None)

    def _tell(self, row: Row | None) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener(row)

    def answer_of(self, watch: str) -> Row | None:
        """The last one."""
        return self._answers.get(watch)

    def events(self) -> list[Row]:
        """The last ones, oldest first."""
        with self._lock:
            return list(self._events)

    @contextmanager
    def heard(self, listener: Callable[[Row | None], object]) -> Iterator[None]:
        """Hand every event to a listener as well, which must not dawdle; None when no more will come."""
        with self._lock:
            self._listeners.append(listener)
            closed = self._closed
        if closed:
            listener(None)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
