"""The starter bundle, loaded once per test file, and a few frames of the demo clip."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from edge_ravlm.frames import Pixels, Region
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.apps.demo import load_clip
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.pipeline import Ravlm, load

GENEROUS_MS = 600_000.0
"""A budget that no machine misses."""


@dataclass(frozen=True)
class Yard:
    """Two frames of each state of the demo clip's gate, seconds apart."""

    closed: Pixels
    closed_later: Pixels
    open: Pixels
    open_later: Pixels
    gate: Region


@pytest.fixture(scope="session")
def yard() -> Yard:
    path, clip = load_clip()
    wanted: dict[int, Pixels] = {14: np.empty(0), 30: np.empty(0), 82: np.empty(0), 90: np.empty(0)}
    with open_camera(path) as camera:
        for frame in camera.frames():
            if frame.index in wanted:
                wanted[frame.index] = frame.pixels
            if frame.index == max(wanted):
                break
    (gate,) = (thing.box() for thing in clip.things if thing.name == "gate")
    return Yard(*wanted.values(), gate=gate)


@pytest.fixture(scope="module")
def starter() -> Iterator[Ravlm]:
    """The starter bundle with a memory that goes with the test file."""
    with load("starter", threads=1, budget_ms=GENEROUS_MS) as opened:
        yield opened


@pytest.fixture
def ravlm(starter: Ravlm) -> Iterator[Ravlm]:
    """The starter bundle with an empty memory."""
    yield starter
    starter.forget([entry.id for entry in starter.memory.entries()])


@pytest.fixture(scope="session")
def strange() -> Pixels:
    """A picture that looks like nothing in the yard."""
    blocks = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(blocks, (320, 240), interpolation=cv2.INTER_NEAREST), np.uint8)


@pytest.fixture(scope="session")
def rules() -> Answering:
    """Round numbers to reason with; the bundle's own are fitted."""
    return Answering(image_floor=0.3, text_floor=0.3, sibling_floor=0.5, sharpness=10.0, abstain_below=0.6)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """until(condition): wait for what another thread is about to do."""

    def wait(condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < give_up, "it never happened"
            time.sleep(0.005)

    return wait
