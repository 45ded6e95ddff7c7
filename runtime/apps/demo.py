"""The demo: a yard camera is taught three things from a few frames each, then asked about the rest of the clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from edge_ravlm.errors import UsageError
from edge_ravlm.files import storing, write_file
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.account import Account
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.pipeline import Ravlm

STRIDE = 2
"""Ask on every second frame: five questions a second on each of the three things."""

STILLS = {14: "closed", 82: "open", 90: "now"}
"""Frames of the gate that are left as pictures, to teach and to ask about by hand."""

_GREEN, _RED, _AMBER = (80, 200, 80), (60, 60, 230), (40, 180, 240)


class Thing(msgspec.Struct, frozen=True):
    """One watched thing of the clip's truth file.

    Attributes:
        region: x0, y0, x1, y1 in pixels.
        states: state to the sentence that teaches it.
        intervals: first frame, last frame, state; None while it moves or is hidden.
    """

    name: str
    question: str
    region: tuple[int, int, int, int]
    states: dict[str, str]
    intervals: list[tuple[int, int, str | None]]

    def box(self) -> Region:
        """Its region, named."""
        return Region.box(*self.region, name=self.name)

    def truth(self, index: int) -> str | None:
        """The sentence that is true on a frame; None where it is not decided."""
        state = next((state for first, last, state in self.intervals if first <= index <= last), None)
        return None if state is None else self.states[state]


class Clip(msgspec.Struct, frozen=True):
    """The truth file beside the clip; ``teach`` is thing -> state -> frames."""

    clip: str
    frames: int
    things: list[Thing]
    teach: dict[str, dict[str, list[int]]]


@dataclass
class Tally:
    """What one thing's questions came to."""

    thing: Thing
    before: Answer | None = None
    answers: list[tuple[int, Answer, str]] = field(default_factory=list)

    @property
    def correct(self) -> int:
        """Answers that are the truth; an abstention is not."""
        return sum(answer.text == truth for _, answer, truth in self.answers)


@dataclass(frozen=True)
class Outcome:
    """The demo's result; ``stills`` are the frames of ``STILLS`` by name."""

    frames: int
    taught_frames: int
    tallies: Sequence[Tally]
    budget_ms: float
    sheet: Pixels
    stills: Mapping[str, Pixels]

    def summary(self) -> dict[str, Any]:
        """The figures, as the command prints them with ``--json``."""
        answers = [answer for tally in self.tallies for _, answer, _ in tally.answers]
        correct = sum(tally.correct for tally in self.tallies)
        return {
            "frames": self.frames,
            "questions": len(answers),
            "correct": correct,
            "accuracy": correct / len(answers),
            "asked_before_teaching": len(self.tallies),
            "abstained_before_teaching": sum(t.before is not None and t.before.abstained for t in self.tallies),
            "abstained": sum(answer.abstained for answer in answers),
            "taught_frames": self.taught_frames,
            **Account(answers).as_dict(self.budget_ms),
        }


def load_clip() -> tuple[Path, Clip]:
    """The clip that ships with the package, and its truth."""
    folder = Path(str(package_files("edge_ravlm"))) / "clips"
    truth = msgspec.json.decode((folder / "yard.json").read_bytes(), type=Clip)
    return folder / truth.clip, truth


def run_demo(ravlm: Ravlm, advance: Callable[..., None]) -> Outcome:
    """Ask, teach, ask: one pass over the clip, as a camera would see it."""
    path, clip = load_clip()
    tallies = [Tally(thing) for thing in clip.things]
    lessons = {
        (frame, thing.name): thing.states[state]
        for thing in clip.things
        for state, frames in clip.teach[thing.name].items()
        for frame in frames
    }
    last_lesson = max(frame for frame, _ in lessons)
    pictures: list[Pixels] = []
    stills: dict[str, Pixels] = {}
    with open_camera(path) as camera:
        for frame in camera.frames():
            advance()
            if frame.index in STILLS:
                stills[STILLS[frame.index]] = frame.pixels.copy()
            for tally in tallies:
                _meet(ravlm, tally, frame, lessons, last_lesson)
            if frame.index > last_lesson and frame.index % (clip.frames // 14) == 0:
                pictures.append(_annotated(frame, tallies))
    return Outcome(clip.frames, len(lessons), tallies, ravlm.budget_ms, _grid(pictures), stills)


def _meet(ravlm: Ravlm, tally: Tally, frame: Frame, lessons: dict[tuple[int, str], str], last_lesson: int) -> None:
    thing, region = tally.thing, tally.thing.box()
    if frame.index == 0:
        tally.before = ravlm.ask(frame, thing.question, region=region)
    lesson = lessons.get((frame.index, thing.name))
    if lesson is not None:
        ravlm.remember(frame, lesson, region=region)
    truth = thing.truth(frame.index)
    if frame.index > last_lesson and frame.index % STRIDE == 0 and truth is not None:
        tally.answers.append((frame.index, ravlm.ask(frame, thing.question, region=region), truth))


def check_sheet(path: Path) -> None:
    """To be found out before the clip is watched: whether a picture can be written under that name.

    Raises:
        UsageError: the name does not end like a picture's.
        StorageError: its folder cannot be made.
    """
    if not cv2.haveImageWriter(f"sheet{path.suffix or '.jpg'}"):
        raise UsageError(
            f"contact sheet '{path}'",
            expected="a name that ends like a picture's",
            got=f"'{path.suffix}'",
            do="end it in .jpg or .png",
        )
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_sheet(sheet: Pixels, path: Path) -> None:
    """Save the contact sheet where ``check_sheet`` found that it can be; raises StorageError if the disk refuses."""
    suffix = path.suffix or ".jpg"
    options = [cv2.IMWRITE_JPEG_QUALITY, 88] if suffix.lower() in (".jpg", ".jpeg") else []
    encoded = cv2.imencode(suffix, sheet, options)[1]
    with _storing(path):
        path.write_bytes(bytes(encoded))


def write_stills(stills: Mapping[str, Pixels], sheet: Path) -> list[Path]:
    """Save the stills beside the contact sheet, named after it: a user's own ``open.jpg`` is not to be overwritten.

    Returns:
        their paths, ``NAME-closed.jpg`` and so on for a sheet ``NAME.jpg``.

    Raises:
        StorageError: the disk refuses.
    """
    paths = [sheet.with_name(f"{sheet.stem}-{name}.jpg") for name in stills]
    for path, pixels in zip(paths, stills.values(), strict=True):
        with _storing(path):
            write_file(path, bytes(cv2.imencode(".jpg", pixels)[1]))
    return paths


def _storing(path: Path) -> AbstractContextManager[None]:
    return storing(f"picture '{path}'", do="give another place with --sheet")


def _annotated(frame: Frame, tallies: Sequence[Tally]) -> Pixels:
    """The frame with each region in the colour of its newest answer: green right, red wrong, amber unsure."""
    picture: Pixels = frame.pixels.copy()
    for tally in tallies:
        if not tally.answers or tally.answers[-1][0] != frame.index:
            continue
        _, answer, truth = tally.answers[-1]
        colour = _AMBER if answer.abstained else _GREEN if answer.text == truth else _RED
        x0, y0, x1, y1 = tally.thing.region
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, 2)
        _label(picture, f"{answer.text}  {answer.confidence:.2f}", (x0, y0), colour)
    _label(picture, f"frame {frame.index}", (4, picture.shape[0]), (230, 230, 230))
    return picture


def _label(picture: Pixels, text: str, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    x = max(0, min(corner[0], picture.shape[1] - width - 4))
    y = max(height + below + 2, corner[1])
    cv2.rectangle(picture, (x, y - height - below - 2), (x + width + 4, y), (30, 30, 30), -1)
    cv2.putText(picture, text, (x + 2, y - below), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)


def _grid(pictures: Sequence[Pixels]) -> Pixels:
    """Three in a row."""
    blank = np.zeros_like(pictures[0])
    cells = [*pictures, *[blank] * (-len(pictures) % 3)]
    rows = [np.hstack(cells[start : start + 3]) for start in range(0, len(cells), 3)]
    return np.asarray(np.vstack(rows), np.uint8)
