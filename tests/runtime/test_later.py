"""What is made later: at once when wanted, never after closing, and what goes wrong is told to who wants it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.generation import Generator
from edge_ravlm.runtime.later import Later
from edge_ravlm.runtime.opening import load

LONG_S = 600.0
Until = Callable[[Callable[[], bool]], None]


class Thing:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_it_is_made_at_once_when_wanted_and_once() -> None:
    made: list[Thing] = []

    def make() -> Thing:
        made.append(Thing())
        return made[-1]

    later = Later(make, LONG_S)
    assert later.get() is later.get() is made[0]
    later.close()
    assert made[0].closed
    assert len(made) == 1


def test_it_is_made_after_a_while_if_nobody_wants_it(until: Until) -> None:
    made = threading.Event()

    def make() -> Thing:
        made.set()
        return Thing()

    later = Later(make, 0.01)
    until(made.is_set)
    later.close()


def test_once_closed_it_is_not_made_any_more() -> None:
    began = time.monotonic()
    later = Later(lambda: pytest.fail("made"), LONG_S)
    later.close()
    assert time.monotonic() - began < LONG_S
    with pytest.raises(UsageError, match="got a closed one; load the bundle again"):
        later.get()


def test_who_wants_it_hears_what_went_wrong() -> None:
    def make() -> Thing:
        raise BundleError("decoder", expected="a model", got="none", do="export it again")

    later = Later(make, 0.0)
    for _ in range(2):
        with pytest.raises(BundleError, match="export it again"):
            later.get()
    later.close()


def test_answers_from_memory_do_not_wait_for_the_decoder(monkeypatch: pytest.MonkeyPatch, yard: object) -> None:
    """And one in words that comes first does."""
    opened: list[str] = []
    made = Generator.__init__

    def init(self: Generator, *arguments: object) -> None:
        opened.append(threading.current_thread().name)
        made(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "__init__", init)
    monkeypatch.setattr("edge_ravlm.runtime.pipeline._LATER_S", LONG_S)
    picture = Frame(yard.closed)  # type: ignore[attr-defined]
    with load(Bundle.open("starter"), budget_ms=LONG_S * 1e3) as ravlm:
        ravlm.remember(picture, "the gate is closed")
        assert ravlm.ask(picture, "is the gate open?").evidence
        assert opened == []
        assert ravlm.ask(Frame(picture.pixels), "is the gate open?", generate=True).text
        assert opened == ["later"]
    with load(Bundle.open("starter")) as ravlm:
        ravlm.settle()
        assert len(opened) == 2
    with load(Bundle.open("starter")):
        pass
    assert len(opened) == 2, "closed before it was needed"


def test_a_program_that_ends_without_closing_does_not_wait_for_what_nobody_wanted() -> None:
    script = """
from edge_ravlm.runtime.later import Later
later = Later(lambda: print("made"), 600.0)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")
