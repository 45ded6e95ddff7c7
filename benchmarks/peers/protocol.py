"""What a peer is, and what it and the benchmark say to each other: one JSON object a line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
import numpy as np

from edge_ravlm.frames import Pixels


class Job(msgspec.Struct, frozen=True):
    """What every peer is given before it is asked.

    Attributes:
        pictures: an ``.npz`` file with ``taught`` and ``shown``, both uint8 [n, h, w, 3], BGR.
        texts: what each taught picture shows.
        entries: in the memory, all told; what is more than was taught is filled up, see ``inputs.filler``.
        threads: for everything that can be told.
        graphs: ONNX files by name.
    """

    pictures: str
    texts: tuple[str, ...]
    entries: int
    threads: int
    graphs: dict[str, str] = {}

    def stored(self, name: str) -> Pixels:
        """``taught`` or ``shown``."""
        with np.load(self.pictures) as arrays:
            return np.asarray(arrays[name], np.uint8)

    @property
    def filler(self) -> tuple[str, ...]:
        """Texts of the entries that were not taught from pictures."""
        return tuple(f"thing {n} lies on the shelf" for n in range(self.entries - len(self.texts)))


class Stages(dict[str, float]):
    """Milliseconds by stage."""

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """What the block takes."""
        start = time.perf_counter()
        yield
        self[stage] = self.get(stage, 0.0) + (time.perf_counter() - start) * 1e3


class Reply(msgspec.Struct, frozen=True):
    """A peer's answer.

    Attributes:
        text: of the nearest entry, or what was generated.
        stages_ms: where the time went.
    """

    text: str
    stages_ms: dict[str, float]


class Peer(Protocol):
    """A way from a frame and a question to a text; made from a ``Job`` by a function that a ``PeerSpec`` names."""

    def ask(self, frame: Pixels, question: str) -> Reply:
        """Answer a question about a frame, uint8 [h, w, 3], BGR."""

    def close(self) -> None:
        """Release what was opened."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """Open the peer and teach it; ``packages`` are those whose versions it is to tell."""

    job: Job
    packages: tuple[str, ...]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question about one of the shown pictures."""

    frame: int
    question: str


class Quit(msgspec.Struct, frozen=True, tag=True):
    """Close it and go."""


class Ready(msgspec.Struct, frozen=True):
    """It was taught; ``environment`` holds the versions in it, None for what is not installed."""

    environment: dict[str, str | None]


class Answered(msgspec.Struct, frozen=True):
    """One answer.

    Attributes:
        ms: from the frame in memory to the text; the pipe to the benchmark is not in it.
        idle_cpu_ms: processor time the process took, on all threads, since its last answer: threads that still spin.
        text, stages_ms: see ``Reply``.
    """

    ms: float
    idle_cpu_ms: float
    text: str
    stages_ms: dict[str, float]
