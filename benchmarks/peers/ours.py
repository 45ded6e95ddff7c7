"""EdgeRAVLM itself, the starter bundle: three ways to ask it."""

from __future__ import annotations

from main_job import BUDGET_MS, FLAVOR, at_level
from synthetic import HEIGHT, WIDTH

import edge_ravlm
from edge_ravlm.bundle import STARTER
from edge_ravlm.frames import Pixels, Region
from edge_ravlm.runtime.answer import Level
from edge_ravlm.runtime.memory import NewEntry
from edge_ravlm.runtime.pipeline import Ravlm
from peers.inputs import filler
from peers.protocol import Job, Reply

GATE = Region.box(WIDTH // 4, HEIGHT // 4, WIDTH * 3 // 4, HEIGHT * 3 // 4, name="gate")


class Pipeline:
    """The product's pipeline as a peer.

    Args:
        ravlm: closed with this object.
        job: what it is taught.
        region: where to look.
        generate: whether the fusion decoder writes the answer.
    """

    def __init__(self, ravlm: Ravlm, job: Job, region: Region | None = None, *, generate: bool = False) -> None:
        self._ravlm, self._region, self._generate = ravlm, region, generate
        ravlm.settle()
        shown = zip(job.stored("taught"), job.texts, strict=True)
        ravlm.memory.add([ravlm.entry(picture, text, region=region) for picture, text in shown])
        others = {name: filler(len(job.filler), space.dim) for name, space in ravlm.memory.spaces.items()}
        ravlm.memory.add(
            [
                NewEntry(text, vectors={name: rows[n] for name, rows in others.items()}, flavor=ravlm.flavor)
                for n, text in enumerate(job.filler)
            ]
        )

    def ask(self, frame: Pixels, question: str) -> Reply:
        """See ``Peer.ask``."""
        answer = self._ravlm.ask(frame, question, region=self._region, generate=self._generate)
        at_level(answer, Level.GENERATED if self._generate else Level.RETRIEVED)
        return Reply(answer.text, answer.latency.stages_ms)

    def close(self) -> None:
        """See ``Ravlm.close``."""
        self._ravlm.close()


def retrieved(job: Job) -> Pipeline:
    """Asked about the whole frame: with a closer look where the first one is not sure."""
    return Pipeline(opened(job), job)


def retrieved_region(job: Job) -> Pipeline:
    """Asked about a region, a quarter of the frame: with a full look where a glimpse is not sure."""
    return Pipeline(opened(job), job, GATE)


def generated(job: Job) -> Pipeline:
    """Asked about the whole frame, answered by the fusion decoder."""
    return Pipeline(opened(job), job, generate=True)


def opened(job: Job, backend: str | None = None) -> Ravlm:
    """The starter; the backend is what wins here unless one is named."""
    return edge_ravlm.load(STARTER, flavor=FLAVOR, budget_ms=BUDGET_MS, threads=job.threads, backend=backend)
