"""An app that watches a yard, served on a free port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.serving.board import Board
from edge_ravlm.runtime.serving.desk import Desk
from edge_ravlm.runtime.serving.server import Server
from edge_ravlm.runtime.watching.app import App

CLOSED, OPEN = "the gate is closed", "the gate is open"


@dataclass(frozen=True)
class Served:
    """What is served, and where."""

    app: App
    board: Board
    url: str
    gate: str
    folder: Path


@contextmanager
def served(path: Path, gate: str, token: str | None = None) -> Iterator[Served]:
    board = Board()
    with (
        App(path, on_event=board.event, on_answer=board.answer) as app,
        Server(Desk(app, board), "127.0.0.1", 0, token) as server,
    ):
        thread = threading.Thread(target=app.run, kwargs={"stay": True})
        thread.start()
        try:
            yield Served(app, board, server.url, gate, path.parent)
        finally:
            app.stop()
            thread.join()


@pytest.fixture
def home(tmp_path: Path, yard: Any) -> Path:
    """An app's file beside a memory that knows the closed gate; its camera shows that, and ends."""
    with load("starter", memory=tmp_path / "yard.memory") as ravlm:
        ravlm.remember(yard.closed, CLOSED, region=yard.gate, tags={"by": "hand"})
    (tmp_path / "stills").mkdir()
    for number in range(3):
        assert cv2.imwrite(str(tmp_path / f"stills/{number}.png"), yard.closed_later)
    assert cv2.imwrite(str(tmp_path / "wide.png"), cv2.resize(yard.open, (1920, 1080)))
    (tmp_path / "app.toml").write_text(
        f"""
memory = "yard.memory"
budget_ms = 60000
[[cameras]]
name = "yard"
source = "stills"
[[cameras]]
name = "wide"
source = "wide.png"
[[cameras]]
name = "gone"
source = "gone.mp4"
[[watches]]
name = "gate"
camera = "yard"
question = "is the gate open?"
region = "{gate_of(yard)}"
[[sinks]]
kind = "file"
path = "events.jsonl"
""",
        encoding="utf-8",
    )
    return tmp_path / "app.toml"


def gate_of(yard: Any) -> str:
    (x0, y0), (x1, y1) = yard.gate.points
    return f"{yard.gate.name}={x0},{y0},{x1},{y1}"


@pytest.fixture
def house(home: Path, yard: Any, until: Callable[[Callable[[], bool]], None]) -> Iterator[Served]:
    with served(home, gate_of(yard)) as opened:
        until(lambda: opened.board.answer_of("gate") is not None)
        until(lambda: all(feed.has_ended for feed in opened.app.feeds.values()))
        yield opened


@pytest.fixture
def locked(home: Path, yard: Any) -> Iterator[Served]:
    """The same, for those who know the token."""
    with served(home, gate_of(yard), "0123456789abcdef") as opened:
        yield opened
