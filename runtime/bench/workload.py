"""What is asked: the package's own clip, of which the right answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.demo import Thing, load_clip
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.pipeline import Asked, Ravlm

CAMERA = "yard"

STRIDE = 4
"""Every so many frames the things are asked about."""


@dataclass(frozen=True)
class Sample:
    """One question about one frame, with the answer that is true of it."""

    name: str
    frame: int
    question: str
    region: Region
    truth: str

    def is_right(self, answer: Answer) -> bool:
        """Whether it is the truth; an abstention is not."""
        return answer.text == self.truth


@dataclass(frozen=True)
class Workload:
    """A clip and what can be asked about it.

    Attributes:
        pictures: the clip's frames, uint8 [h, w, 3] BGR.
        things: what is watched in it.
        teach: thing -> state -> frames that teach it.
    """

    pictures: Sequence[Pixels]
    things: Sequence[Thing]
    teach: dict[str, dict[str, list[int]]]

    @cached_property
    def samples(self) -> list[Sample]:
        """Every question to which there is a true answer, after the last frame that teaches."""
        last = max(frame for states in self.teach.values() for frames in states.values() for frame in frames)
        return [
            Sample(f"{thing.name}@{index}", index, thing.question, thing.box(), truth)
            for index in range(last + 1, len(self.pictures), STRIDE)
            for thing in self.things
            if (truth := thing.truth(index)) is not None
        ]

    @property
    def megabytes(self) -> float:
        """What the frames take; a camera would bring one at a time."""
        return sum(picture.nbytes for picture in self.pictures) / 1e6

    def instruct(self, ravlm: Ravlm) -> None:
        """Show and name everything that is asked about."""
        for thing in self.things:
            for state, frames in self.teach[thing.name].items():
                for frame in frames:
                    ravlm.remember(self.pictures[frame], thing.states[state], region=thing.box())

    def ask(self, ravlm: Ravlm, sample: Sample, *, generate: bool = False) -> Answer:
        """Looked at anew: what an earlier answer could save is not saved."""
        return next(self.ask_all(ravlm, [sample], generate=generate))

    def ask_all(self, ravlm: Ravlm, samples: Sequence[Sample], *, generate: bool = False) -> Iterator[Answer]:
        """The same of several that came together, and are looked at together where that is quicker.

        Their latencies all count from now.
        """
        frames = [Frame(self.pictures[sample.frame], index=sample.frame, source=CAMERA) for sample in samples]
        pairs = list(zip(frames, samples, strict=True))
        if len(pairs) > 1:
            ravlm.look_ahead([Asked(frame, of.question, of.region, fresh=True) for frame, of in pairs])
        for frame, of in pairs:
            yield ravlm.ask(frame, of.question, region=of.region, generate=generate or None, fresh=True)


def yard(advance: Callable[..., None] = lambda: None) -> Workload:
    """The clip that ships with the package: a gate, a bin and a parking space."""
    path, clip = load_clip()
    pictures = []
    with open_camera(path) as camera:
        for frame in camera.frames():
            pictures.append(frame.pixels)
            advance()
    return Workload(pictures, clip.things, clip.teach)
