"""What is not needed at once: made in a thread of its own a moment later, or as soon as somebody wants it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from edge_ravlm.errors import UsageError


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class Later(Generic[T]):
    """Something that is made later.

    Args:
        make: makes it, in a thread of its own.
        after_s: seconds until it is made if nobody wants it before, so that whoever waits for something else has the
            processors.
    """

    def __init__(self, make: Callable[[], T], after_s: float) -> None:
        self._make, self._after_s = make, after_s
        self._made: T | None = None
        self._error: Exception | None = None
        self._closed, self._wanted = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="later", daemon=True)
        self._thread.start()
        # A program that ends without ``close`` does not wait for what nobody wanted, and ends no work half-way.
        weakref.finalize(self, _end, self._closed, self._wanted, self._thread)

    @property
    def ready(self) -> bool:
        """Whether it is there."""
        return self._made is not None

    def get(self) -> T:
        """It, once it is there; raises what making it raised, and UsageError once closed."""
        self._wanted.set()
        self._thread.join()
        if self._made is None:
            raise self._error or UsageError(
                "model", expected="an open one", got="a closed one", do="load the bundle again"
            )
        return self._made

    def close(self) -> None:
        """Close it if it was made; else it is not made any more."""
        _end(self._closed, self._wanted, self._thread)
        if self._made is not None:
            self._made.close()

    def _run(self) -> None:
        self._wanted.wait(self._after_s)
        if self._closed.is_set():
            return
        try:
            self._made = self._make()
        except Exception as error:  # whoever wants it will hear of it
            self._error = error


def _end(closed: threading.Event, wanted: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    wanted.set()
    if thread is not threading.current_thread():  # which drops the last reference where nobody else has kept one
        thread.join()
