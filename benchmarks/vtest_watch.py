"""How well does the starter watch a real surveillance camera after eight frames were shown to it?

    make data && python benchmarks/vtest_watch.py --json            [--sheet FILE.png] [--development]

The clip is OpenCV's `vtest.avi` (Debian package opencv-doc), labelled frame by frame in `vtest_labels.json`.
Eight of the frames 0..199 are taught, by a rule that sees the labels of those frames alone
(`frames_to_teach`); then "is anyone here?" is asked on every frame 200..794 in order, as a camera delivers
them. Nothing may be chosen by looking at results on 200..794: to try a change, use `--development`,
which keeps to frames 0..199 (each stretch of equal labels is asked about after teaching from the
others).

An abstention counts as wrong. Frames labelled partial (somebody is half in the box) are asked but not scored;
the share answered with "someone is here" is given instead.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from common import setting, setting_line

import edge_ravlm
from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import DataError, EdgeRavlmError
from edge_ravlm.export.data.packages import VTEST, cached
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.account import Account
from edge_ravlm.runtime.apps.demo import check_sheet, write_sheet
from edge_ravlm.runtime.bench.report import figure_rows

LABELS = Path(__file__).with_name("vtest_labels.json")
QUESTION = "is anyone here?"
TEXTS = {"present": "someone is here", "absent": "nobody is here"}
TEACH_BEFORE = 200
"""Frames from here on are for the test alone."""

TAUGHT_EACH = 4
"""Frames taught of either answer, at most."""

FLAVOR, THREADS = "cpu-u8", 2

_RIGHT, _WRONG, _UNSCORED = (80, 170, 60), (40, 40, 235), (150, 150, 150)
_COLUMNS, _TILE, _CAPTION = 20, 90, 14

Stretch = tuple[int, int, str]
Numbered = tuple[int, Pixels]


class Labels(msgspec.Struct, frozen=True):
    """`vtest_labels.json`: what was seen in the box, by eye, as stretches (first, last, label)."""

    clip: str
    sha256: str
    frames: int
    box: tuple[int, int, int, int]
    intervals: tuple[Stretch, ...]

    def stretches(self, before: int) -> list[Stretch]:
        """The stretches of the frames below ``before``."""
        cut = ((first, min(last, before - 1), label) for first, last, label in self.intervals)
        return [(first, last, label) for first, last, label in cut if first <= last]

    def by_frame(self) -> dict[int, str]:
        """Label by frame."""
        return {i: label for first, last, label in self.intervals for i in range(first, last + 1)}


@dataclass(frozen=True)
class Asked:
    """One frame's question: what the label says, what the runtime said, and the pixels it was about."""

    index: int
    truth: str
    answer: Answer
    crop: Pixels

    @property
    def right(self) -> bool:
        """Whether the answer is the label's; an abstention is not."""
        return self.answer.text == TEXTS.get(self.truth)


def frames_to_teach(stretches: Sequence[Stretch]) -> dict[int, str]:
    """Label by frame: the middle of each stretch with somebody, and as many spread evenly over empty ones.

    Where there are more than TAUGHT_EACH stretches with somebody, the longest are taken.
    """
    present = sorted((s for s in stretches if s[2] == "present"), key=lambda s: s[0] - s[1])[:TAUGHT_EACH]
    middles = [(first + last) // 2 for first, last, _ in present]
    empty = [i for first, last, label in stretches if label == "absent" for i in range(first, last + 1)]
    spread = [empty[int((n + 0.5) * len(empty) / len(middles))] for n in range(len(middles))]
    return dict(sorted({**dict.fromkeys(middles, "present"), **dict.fromkeys(spread, "absent")}.items()))


def clip_frames(labels: Labels) -> Iterator[Numbered]:
    """The clip's frames in order; raises DataError if the clip is missing or is another one."""
    folder = cached("opencv-doc")
    path = folder / VTEST if folder else Path(VTEST)
    if not path.is_file():
        raise DataError(f"clip '{labels.clip}'", expected="it in the cache", got="no such file", do="run `make data`")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != labels.sha256:
        raise DataError(
            f"clip '{path}'",
            expected=f"SHA-256 {labels.sha256[:12]}…",
            got=f"{found[:12]}…",
            do="remove it and run `make data`",
        )
    return _decoded(path)


def _decoded(path: Path) -> Iterator[Numbered]:
    capture = cv2.VideoCapture(str(path))
    index = 0
    while True:
        more, pixels = capture.read()
        if not more:
            return
        yield index, np.asarray(pixels, np.uint8)
        index += 1


def watch(
    bundle: Bundle, labels: Labels, taught: Iterable[tuple[Pixels, str]], frames: Iterable[Numbered]
) -> Iterator[Asked]:
    """Teach a fresh memory, then ask about every frame in order."""
    region, truth = Region.box(*labels.box, name="walkway"), labels.by_frame()
    with edge_ravlm.load(bundle, flavor=FLAVOR, threads=THREADS) as ravlm:
        ravlm.settle()
        for pixels, label in taught:
            ravlm.remember(pixels, TEXTS[label], region=region)
        for index, pixels in frames:
            answer = ravlm.ask(Frame(pixels, index=index), QUESTION, region=region)
            yield Asked(index, truth[index], answer, region.crop(pixels).copy())


def run_test(bundle: Bundle, labels: Labels, advance: Callable[[], None]) -> tuple[list[int], list[Asked]]:
    """Teach by the rule from the first frames, ask about all later ones."""
    clip = clip_frames(labels)
    early = dict(islice(clip, TEACH_BEFORE))
    taught = frames_to_teach(labels.stretches(TEACH_BEFORE))
    shown = [(early[i], label) for i, label in taught.items()]
    return list(taught), list(_counted(watch(bundle, labels, shown, clip), advance))


def run_development(bundle: Bundle, labels: Labels, advance: Callable[[], None]) -> tuple[list[int], list[Asked]]:
    """Within the first frames: each stretch is asked about after teaching from all others."""
    early = dict(islice(clip_frames(labels), TEACH_BEFORE))
    stretches = labels.stretches(TEACH_BEFORE)
    asked: list[Asked] = []
    for held_out in stretches:
        taught = frames_to_teach([s for s in stretches if s != held_out])
        shown = [(early[i], label) for i, label in taught.items()]
        frames = [(i, early[i]) for i in range(held_out[0], held_out[1] + 1)]
        asked += _counted(watch(bundle, labels, shown, frames), advance)
    return list(frames_to_teach(stretches)), asked


def _counted(asked: Iterable[Asked], advance: Callable[[], None]) -> Iterator[Asked]:
    for one in asked:
        advance()
        yield one


def score(asked: Sequence[Asked]) -> dict[str, Any]:
    """The figures of quality, rates as fractions of 1."""
    scored = [a for a in asked if a.truth in TEXTS]
    partial = [a for a in asked if a.truth not in TEXTS]
    recall = {label: _share([a.right for a in scored if a.truth == label]) for label in TEXTS}
    return {
        "questions": len(scored),
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "accuracy": _share([a.right for a in scored]),
        "recall_present": recall["present"],
        "recall_absent": recall["absent"],
        "abstained": sum(a.answer.abstained for a in scored),
        "partial_frames": len(partial),
        "partial_answered_present": _share([a.answer.text == TEXTS["present"] for a in partial]),
        "majority_balanced_accuracy": 0.5,
    }


def cost(asked: Sequence[Asked]) -> dict[str, Any]:
    """The figures of time, and which levels answered."""
    return Account(a.answer for a in asked).as_dict(asked[0].answer.latency.budget_ms)


def _share(true: Sequence[bool]) -> float:
    return sum(true) / len(true) if true else 0.0


def contact_sheet(asked: Sequence[Asked]) -> Pixels:
    """Each asked box with its frame, label (L) and answer (A); red where wrong, grey where unscored."""
    tiles = [_tile(one) for one in asked]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % _COLUMNS)
    rows = [np.hstack(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def _tile(one: Asked) -> Pixels:
    colour = _UNSCORED if one.truth not in TEXTS else _RIGHT if one.right else _WRONG
    said = {text: label for label, text in TEXTS.items()}.get(one.answer.text, "?")
    picture = cv2.resize(one.crop, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    tile = cv2.copyMakeBorder(picture, _CAPTION, 3, 3, 3, cv2.BORDER_CONSTANT, value=colour)
    caption = f"{one.index} L:{one.truth[:4]} A:{said[:4]}"
    cv2.putText(tile, caption, (2, 10), cv2.FONT_HERSHEY_PLAIN, 0.62, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(tile, np.uint8)


def main() -> int:
    """Run it and say what came out."""
    arguments = _parser().parse_args()
    try:
        if arguments.sheet:
            check_sheet(arguments.sheet)
        figures, about, asked = measure(development=arguments.development)
        if arguments.sheet:
            write_sheet(contact_sheet(asked), arguments.sheet)
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    if arguments.json:
        say_json({**figures, **about})
    else:
        table(f"{figures['clip']}: {QUESTION}", ("figure", "value"), figure_rows(figures))
        say(setting_line(about))
    return 0


def measure(*, development: bool) -> tuple[dict[str, Any], dict[str, Any], list[Asked]]:
    """The figures, the setting they were taken in, and every question asked."""
    labels = msgspec.json.decode(LABELS.read_bytes(), type=Labels)
    bundle = Bundle.open(STARTER)
    run, total = (run_development, TEACH_BEFORE) if development else (run_test, labels.frames - TEACH_BEFORE)
    with progress("frames", total) as advance:
        taught, asked = run(bundle, labels, advance)
    frames = "development" if development else "test"
    figures = {"clip": labels.clip, "frames": frames, "frames_taught": taught, **score(asked), **cost(asked)}
    return figures, setting(bundle, FLAVOR, THREADS), asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write all crops with their answers")
    parser.add_argument("--development", action="store_true", help="stay within the frames before the test")
    return parser


if __name__ == "__main__":
    sys.exit(main())
