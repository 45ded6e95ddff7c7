"""The surveillance clip's benchmark: what it may see, how it scores, and that the starter holds it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import vtest_watch
from vtest_watch import (
    LABELS,
    TEACH_BEFORE,
    TEXTS,
    Asked,
    Labels,
    Numbered,
    contact_sheet,
    cost,
    frames_to_teach,
    run_development,
    run_test,
    score,
)

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import VTEST, cached
from edge_ravlm.runtime.answer import UNKNOWN, Answer, Latency, Level

SCRIPT = Path(vtest_watch.__file__)
CLIP = Path("opencv-doc") / VTEST


@pytest.fixture
def labels() -> Labels:
    return msgspec.json.decode(LABELS.read_bytes(), type=Labels)


def asked(truth: str, text: str, index: int = 0, ms: float = 10.0) -> Asked:
    reason = "" if text in TEXTS.values() else "too close to call"
    answer = Answer(text, 0.9, Level.RETRIEVED, (), Latency({}, ms, 100.0), 0.0, reason)
    return Asked(index, truth, answer, np.full((20, 30, 3), 127, np.uint8))


def run(*arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | ({"EDGE_RAVLM_CACHE": str(cache)} if cache else {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.data
def test_after_eight_frames_the_starter_knows_whether_anyone_is_there(labels: Labels, tmp_path: Path) -> None:
    if cached("opencv-doc") is None:
        pytest.skip("the surveillance clip is not in the cache: run `make data`")
    sheet = tmp_path / "sheets" / "sheet.jpg"
    done = run("--json", "--sheet", sheet)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    assert figures["balanced_accuracy"] >= 0.90
    assert figures["majority_balanced_accuracy"] == 0.5
    assert len(figures["frames_taught"]) <= 8
    assert max(figures["frames_taught"]) < TEACH_BEFORE
    later = [label for index, label in labels.by_frame().items() if index >= TEACH_BEFORE]
    assert figures["questions"] == sum(label in TEXTS for label in later)
    assert figures["questions"] + figures["partial_frames"] == len(later) == sum(figures["levels"].values())
    assert set(figures["latency_ms"]) == {"p50", "p99"}
    assert {"machine", "libraries", "threads", "precision", "bundle_sha256", "quality"} <= set(figures)
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape[0] > 1000


def test_without_the_clip_it_says_what_to_run(tmp_path: Path) -> None:
    done = run(cache=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "make data" in done.stderr


def test_another_clip_is_refused(labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / CLIP).parent.mkdir(parents=True)
    (tmp_path / CLIP).write_bytes(b"another clip")
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=hashlib.sha256(b"another clip").hexdigest()[:12]):
        vtest_watch.clip_frames(labels)


def test_a_sheet_that_is_no_picture_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    done = run("--sheet", tmp_path / "sheet.txt", cache=tmp_path)
    assert done.returncode == 2
    assert ".txt" in done.stderr


def test_what_is_taught_depends_on_early_labels_alone(labels: Labels) -> None:
    taught = frames_to_teach(labels.stretches(TEACH_BEFORE))
    assert [list(taught.values()).count(label) for label in TEXTS] == [4, 4]
    assert all(index < TEACH_BEFORE and labels.by_frame()[index] == label for index, label in taught.items())
    early = tuple(stretch for stretch in labels.intervals if stretch[0] < TEACH_BEFORE)
    cut = (*early[:-1], (early[-1][0], TEACH_BEFORE - 1, early[-1][2]))
    for later in ((), ((TEACH_BEFORE, 794, "absent"),), ((TEACH_BEFORE, 794, "present"),)):
        other = msgspec.structs.replace(labels, intervals=cut + later)
        assert frames_to_teach(other.stretches(TEACH_BEFORE)) == taught


def test_labels_cover_every_frame_once(labels: Labels) -> None:
    frames = [i for first, last, _ in labels.intervals for i in range(first, last + 1)]
    assert frames == list(range(labels.frames))
    assert {label for _, _, label in labels.intervals} == {"present", "absent", "partial"}


def test_the_longest_stretches_are_taught_and_as_many_empty_frames() -> None:
    assert frames_to_teach([(0, 8, "present"), (9, 9, "partial"), (10, 19, "absent")]) == {4: "present", 15: "absent"}
    lengths = [3, 9, 5, 11, 7]
    stretches = [(20 * n, 20 * n + length - 1, "present") for n, length in enumerate(lengths)]
    taught = frames_to_teach([*stretches, (200, 239, "absent")])
    assert taught == {
        24: "present", 42: "present", 65: "present", 83: "present",
        205: "absent", 215: "absent", 225: "absent", 235: "absent",
    }  # fmt: skip


def test_balanced_accuracy_weighs_both_answers_alike() -> None:
    here, nobody = TEXTS["present"], TEXTS["absent"]
    figures = score(
        [
            asked("present", here),
            asked("present", nobody),
            *[asked("absent", nobody)] * 7,
            asked("absent", UNKNOWN),
            asked("partial", here),
            asked("partial", nobody),
            asked("partial", UNKNOWN),
            asked("partial", nobody),
        ]
    )
    assert figures == {
        "questions": 10,
        "balanced_accuracy": (1 / 2 + 7 / 8) / 2,
        "accuracy": 0.8,
        "recall_present": 1 / 2,
        "recall_absent": 7 / 8,
        "abstained": 1,
        "partial_frames": 4,
        "partial_answered_present": 1 / 4,
        "majority_balanced_accuracy": 0.5,
    }


def test_late_answers_are_counted() -> None:
    figures = cost([asked("absent", TEXTS["absent"], ms=ms) for ms in (10.0, 20.0, 101.0)])
    assert figures["latency_ms"]["p50"] == 20.0
    assert (figures["budget_ms"], figures["deadline_misses"]) == (100.0, 1)


def test_the_sheet_shows_what_was_wrong() -> None:
    tiles = [asked("present", TEXTS[said], n) for n, said in enumerate(("present", "absent"))]
    tiles += [asked("partial", TEXTS["absent"], 2), asked("absent", UNKNOWN, 3)]
    sheet = contact_sheet(tiles)
    width = sheet.shape[1] // 20
    frames = [tuple(sheet[-1, width * n].tolist()) for n in range(5)]
    right, wrong, unscored = vtest_watch._RIGHT, vtest_watch._WRONG, vtest_watch._UNSCORED
    assert frames == [right, wrong, unscored, wrong, (255, 255, 255)]


class Clip:
    """A hand-made clip: bright with somebody, dark without; remembers how far it was read."""

    labels = Labels("toy", "", 40, (0, 0, 64, 64), ((0, 4, "present"), (5, 9, "absent"), (10, 14, "present"),
                                                    (15, 24, "absent"), (25, 39, "present")))  # fmt: skip

    def __init__(self) -> None:
        self.read: list[int] = []

    def frames(self, labels: Labels) -> Iterator[Numbered]:
        for index, label in labels.by_frame().items():
            self.read.append(index)
            dots = np.random.default_rng(index).integers(0, 60, (64, 64, 3), np.uint8)
            yield index, dots + np.uint8(180 if label == "present" else 0)


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> Clip:
    made = Clip()
    monkeypatch.setattr(vtest_watch, "TEACH_BEFORE", 20)
    monkeypatch.setattr(vtest_watch, "clip_frames", made.frames)
    return made


def test_development_never_sees_a_test_frame(clip: Clip) -> None:
    steps: list[None] = []
    taught, found = run_development(Bundle.open(STARTER), clip.labels, lambda: steps.append(None))
    assert clip.read == list(range(20))
    assert [one.index for one in found] == list(range(20))
    assert len(steps) == 20
    assert set(taught) < set(range(20))


def test_the_test_asks_about_all_later_frames_and_no_other(clip: Clip) -> None:
    taught, found = run_test(Bundle.open(STARTER), clip.labels, lambda: None)
    assert [one.index for one in found] == list(range(20, 40))
    assert max(taught) < 20
    assert all(one.right for one in found)
