"""Watching a real source: a folder of frames, a clip, a camera that gives up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_ravlm.errors import CameraError
from edge_ravlm.frames import Pixels
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.apps import account
from edge_ravlm.runtime.apps.account import Account
from edge_ravlm.runtime.apps.watch import Sighting, watch
from edge_ravlm.runtime.camera import LiveCapture, open_camera
from edge_ravlm.runtime.pipeline import Ravlm

OPEN, CLOSED = "the gate is open", "the gate is closed"
QUESTIONS = ("is the gate open?", "what is this?")


@pytest.fixture
def taught(ravlm: Ravlm, yard: Any) -> Ravlm:
    ravlm.remember(yard.open, OPEN, region=yard.gate)
    ravlm.remember(yard.closed, CLOSED, region=yard.gate)
    return ravlm


@pytest.fixture
def folder(tmp_path: Path, yard: Any) -> Path:
    """Closed, then open: ten stills that stand in for a camera for a second."""
    pictures: list[Pixels] = [yard.closed, yard.closed_later] * 2 + [yard.open, yard.open_later] * 3
    path = tmp_path / "frames"
    path.mkdir()
    for i, picture in enumerate(pictures):
        assert cv2.imwrite(str(path / f"{i}.png"), picture)
    return path


def film(path: Path, pictures: list[Pixels], fps: float = 50.0) -> Path:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), fps, (width, height))
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


def watched(ravlm: Ravlm, source: Path, yard: Any, limit: int = 0, **opening: Any) -> list[Sighting]:
    with LiveCapture(open_camera(source, **opening)) as live:
        return list(watch(ravlm, live, QUESTIONS, yard.gate, limit))


def test_every_question_is_answered_about_each_frame_until_the_source_ends(
    taught: Ravlm, folder: Path, yard: Any
) -> None:
    seen = watched(taught, folder, yard)
    frames = [sighting.frame for sighting in seen]
    assert [sighting.question for sighting in seen] == list(QUESTIONS) * (len(seen) // 2)
    assert frames[::2] == frames[1::2], "both questions are asked of the same frame"
    indices = [frame.index for frame in frames[::2]]
    assert indices == sorted(set(indices)), "never the same frame twice, never an older one"
    assert indices[-1] == 9, "the newest frame is never dropped"
    for sighting in seen:
        assert sighting.answer.text == (OPEN if sighting.frame.index >= 4 else CLOSED)


def test_a_change_is_told_once_for_each_question(taught: Ravlm, folder: Path, yard: Any) -> None:
    seen = watched(taught, folder, yard)
    for question in QUESTIONS:
        mine = [sighting for sighting in seen if sighting.question == question]
        previous = [None, *(sighting.answer.text for sighting in mine)]
        assert [sighting.changed for sighting in mine] == [
            sighting.answer.text != before for sighting, before in zip(mine, previous, strict=False)
        ]
        assert mine[0].changed, "the first answer is news"


def test_a_watch_stops_after_as_many_frames_as_were_asked_for(taught: Ravlm, folder: Path, yard: Any) -> None:
    seen = watched(taught, folder, yard, limit=2, loop=True)
    assert len(seen) == 4
    assert len({sighting.frame.index for sighting in seen}) == 2


def test_a_clip_is_watched_to_its_end(taught: Ravlm, tmp_path: Path, yard: Any) -> None:
    clip = film(tmp_path / "clip.avi", [yard.closed] * 10 + [yard.open] * 10)
    seen = watched(taught, clip, yard)
    assert seen[-1].frame.index == 19
    assert seen[-1].answer.text == OPEN
    assert any(sighting.answer.level is Level.CACHED for sighting in seen)


def test_a_camera_that_gave_up_is_never_taken_for_one_that_ended(
    taught: Ravlm, tmp_path: Path, yard: Any, until: Callable[[Callable[[], bool]], None]
) -> None:
    clip = film(tmp_path / "clip.avi", [yard.closed] * 5)
    with LiveCapture(open_camera(clip, loop=True)) as live:
        clip.unlink()  # it cannot be started again
        until(lambda: "clip.avi" in live.reason)
        seen: list[Sighting] = []
        with pytest.raises(CameraError, match=r"clip\.avi"):
            seen.extend(watch(taught, live, QUESTIONS, yard.gate))
        assert [sighting.frame.index for sighting in seen] == [4, 4], "the last frame is answered first"


def test_a_source_closed_by_another_thread_ends_the_watch(taught: Ravlm, folder: Path, yard: Any) -> None:
    live = LiveCapture(open_camera(folder, loop=True))
    seen = 0
    for _ in watch(taught, live, QUESTIONS, yard.gate):
        seen += 1
        live.close()
    assert seen == len(QUESTIONS)


# -- what it came to -------------------------------------------------------------------------------------------


def answer(total_ms: float, level: Level = Level.RETRIEVED) -> Answer:
    return Answer("yes", 0.9, level, (), Latency({}, total_ms, 100.0), 0.0)


def test_an_account_adds_up() -> None:
    figures = Account([answer(10), answer(20), answer(90, Level.CACHED), answer(110)]).as_dict(100.0)
    assert figures == {
        "levels": {"cached": 1, "retrieved": 3},
        "latency_ms": {"p50": 55.0, "p99": pytest.approx(109.4)},
        "budget_ms": 100.0,
        "deadline_misses": 1,
    }


def test_an_account_of_nothing_has_no_latency() -> None:
    assert Account().as_dict(40.0) == {"levels": {}, "latency_ms": None, "budget_ms": 40.0, "deadline_misses": 0}


def test_an_account_of_a_watch_without_an_end_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "RECENT", 3)
    kept = Account()
    for total_ms in (500.0, 1.0, 2.0, 3.0):
        kept.add(answer(total_ms))
    assert (kept.answers, kept.misses) == (4, 1), "counts are of all answers"
    assert kept.latency_ms() == {"p50": 2.0, "p99": pytest.approx(2.98)}, "percentiles of the newest"
