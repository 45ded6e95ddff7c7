"""The deadline benchmark on a runtime whose speed is known: what it counts, and that a plain loop looks worse."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import deadline as benchmark
import numpy as np
import pytest
import soak

from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.apps.demo import Thing
from edge_ravlm.runtime.bench.workload import Workload
from edge_ravlm.runtime.watching.settings import read_app

pytestmark = pytest.mark.export  # it draws

BUDGET_MS = 60.0


class Answerer:
    """Every answer takes so long; those about odd frames are wrong."""

    processors = ()

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s

    def ask(self, frame: Frame, question: str, *, budget_ms: float, **_: Any) -> Answer:
        time.sleep(self._takes_s)
        spent_ms = (time.monotonic() - frame.captured_at) * 1e3
        text = "odd" if frame.index % 2 else "even"
        return Answer(text, 0.9, Level.RETRIEVED, (), Latency({}, spent_ms, budget_ms), frame.captured_at)


def clip() -> Workload:
    """Frames of which the third has no truth, and all others are even."""
    gate = Thing("gate", "is it even?", (0, 0, 4, 4), {"even": "even"}, [(0, 1, "even"), (3, 9, "even")])
    return Workload([np.zeros((4, 4, 3), np.uint8)] * 10, [gate], {})


def test_nothing_is_late_lost_or_old_where_there_is_time() -> None:
    found = benchmark._watched(Answerer(0.0), clip(), BUDGET_MS, 20.0, 0.6)
    assert (found["answers"], found["lost"], found["reordered"]) == (30, 0, 0)
    assert found["median_age_frames"] == 0
    assert found["levels"]["retrieved"] > 0.8
    assert found["accuracy"] == pytest.approx(12 / 27, abs=0.1)
    assert len(found["latencies_ms"]) == 30


def test_too_many_frames_are_held_by_the_watcher_and_queue_up_in_a_plain_loop() -> None:
    slow, runs = Answerer(0.05), (benchmark._watched, benchmark._plain_loop)
    watched, plain = (run(slow, clip(), BUDGET_MS, 10.0, 1.5) for run in runs)
    assert (watched["answers"], watched["lost"], watched["reordered"]) == (150, 0, 0)
    assert watched["levels"]["held"] > 0.5
    assert watched["max_queue"] < plain["max_queue"]
    assert watched["miss_rate"] < plain["miss_rate"]
    assert watched["median_age_frames"] < plain["median_age_frames"]
    assert plain["lost"] > 50


def test_a_loop_that_takes_the_newest_frame_is_young_but_leaves_out_most() -> None:
    found = benchmark._plain_loop(Answerer(0.05), clip(), BUDGET_MS, 10.0, 1.5, 1)
    assert found["max_queue"] == 1
    assert found["answers"] + found["lost"] == 150
    assert found["lost"] > 100
    assert found["median_age_frames"] <= 6


def test_the_picture_shows_all_runs(tmp_path: Path) -> None:
    row = {"latencies_ms": [1.0, 2.0, 30.0], "miss_rate": 1 / 3}
    found = {**dict.fromkeys(benchmark.RUNS, row), "budget_ms": 20.0}
    benchmark.plot(found, tmp_path / "x.png")
    assert cv2.imread(str(tmp_path / "x.png")).shape[0] > 300


def test_the_soak_writes_an_app_that_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    soak._teach(path, "http://127.0.0.1:1/live.mjpg")
    app = read_app(path)
    assert [camera.name for camera in app.cameras] == ["yard0", "yard1", "yard2", "yard3", "network"]
    assert len(app.watches) == 10
    assert (tmp_path / "yard.memory").is_dir()


def test_the_soak_counts_what_came_and_what_came_out_of_order() -> None:
    tally = soak.Tally()
    for index in (0, 1, 3, 2, 3, 7):
        tally.add(index)
    assert (tally.count, tally.reordered, tally.last) == (4, 2, 7)
