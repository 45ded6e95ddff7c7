"""Watch one source: ask the same questions of its newest frame until it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_ravlm.frames import Frame, Region
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.camera import LiveCapture
from edge_ravlm.runtime.pipeline import Ravlm

PATIENCE_S = 1.0
"""How long one wait for a frame lasts; a lost camera is waited for again and again."""


@dataclass(frozen=True)
class Sighting:
    """One answered question.

    Attributes:
        changed: whether the answer differs from this question's previous one.
    """

    frame: Frame
    question: str
    answer: Answer
    changed: bool


def watch(
    ravlm: Ravlm, live: LiveCapture, questions: Sequence[str], region: Region | None = None, limit: int = 0
) -> Iterator[Sighting]:
    """Answer the questions about each newest frame, in order; frames that come meanwhile are dropped.

    Args:
        ravlm: ready to be asked.
        live: the source.
        questions: asked of every frame.
        region: look only here.
        limit: stop after this many frames; 0 goes on until the source ends.

    Raises:
        CameraError: the camera gave up.
    """
    previous: dict[str, str] = {}
    seen = 0
    while not limit or seen < limit:
        ended = live.ended  # looked up first: if it has ended, the next line raises what it ended with
        frame = live.newest(PATIENCE_S)
        if frame is None:
            if ended:
                return
            continue
        seen += 1
        for question in questions:
            answer = ravlm.ask(frame, question, region=region)
            changed = previous.get(question) != answer.text
            previous[question] = answer.text
            yield Sighting(frame, question, answer, changed)
