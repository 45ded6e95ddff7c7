"""Feeds: a camera's frames, whatever happens to the camera."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.errors import CameraError
from edge_ravlm.frames import Frame, Region
from edge_ravlm.runtime.watching import feeds
from edge_ravlm.runtime.watching.feeds import Feed
from edge_ravlm.runtime.watching.settings import CameraSettings
from tests.runtime.conftest import MjpegServer

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    """Ten pictures, of which the sixth brings a bright square on the left."""
    folder = tmp_path / "stills"
    folder.mkdir()
    for index in range(10):
        picture = np.full((96, 128, 3), 60, np.uint8)
        if index >= 5:
            picture[20:60, 10:50] = 220
        assert cv2.imwrite(str(folder / f"{index}.png"), picture)
    return folder


class Seen:
    """What a feed handed on."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.moved: list[frozenset[str]] = []
        self.states: list[str] = []
        self.lock = threading.Lock()

    def offer(self, _camera: str, frame: Frame, moved: frozenset[str]) -> None:
        with self.lock:
            self.frames.append(frame)
            self.moved.append(moved)

    def changed(self, feed: Feed) -> None:
        self.states.append(feed.state)


def started(seen: Seen, base: Path, motions: dict[str, Region | None] | None = None, **settings: object) -> Feed:
    feed = Feed(CameraSettings(name="yard", **settings), base, motions or {}, seen.offer, seen.changed)
    feed.start()
    return feed


def test_a_recording_is_read_at_its_pace_and_ends(stills: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, stills.parent, source="stills")
    until(lambda: feed.has_ended)
    feed.close()
    assert [frame.index for frame in seen.frames] == list(range(10))
    assert {frame.source for frame in seen.frames} == {"yard"}
    assert seen.states == ["running", "ended"]
    assert feed.reason == "end of file"


def test_a_file_that_is_not_there_ends_with_its_sentence(tmp_path: Path, until: Until) -> None:
    feed = started(Seen(), tmp_path, source="none.mp4")
    until(lambda: feed.has_ended)
    assert "none.mp4" in feed.reason
    assert "no such file" in feed.reason.lower()


def test_fewer_frames_a_second_are_handed_on_where_that_is_wished(stills: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, stills.parent, source="stills", fps=2.5)
    until(lambda: feed.has_ended)
    gaps = np.diff([frame.captured_at for frame in seen.frames])
    assert 2 <= len(seen.frames) <= 4
    assert gaps.min() > 0.3


def test_what_moved_is_told_by_watch_and_region(stills: Path, until: Until) -> None:
    seen = Seen()
    motions = {"left": Region.box(0, 0, 64, 96), "right": Region.box(64, 0, 128, 96), "all": None}
    feed = started(seen, stills.parent, motions, source="stills")
    until(lambda: feed.has_ended)
    moved = [sorted(names) for names in seen.moved]
    assert moved == [["all", "left", "right"], *[[]] * 4, ["all", "left"], *[[]] * 4]


def test_a_region_outside_of_the_picture_is_the_watchs_to_complain_about(stills: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, stills.parent, {"far": Region.box(0, 0, 640, 480)}, source="stills")
    until(lambda: feed.has_ended)
    assert all(names == {"far"} for names in seen.moved)


def test_a_live_camera_comes_back_after_every_loss(server: MjpegServer, tmp_path: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, tmp_path, source=server.url)
    for times in range(3):
        until(lambda: feed.state == "running")
        assert feed.reconnects == times
        server.stop()
        until(lambda: feed.state == "lost")
        server.start()
    until(lambda: feed.state == "running")
    feed.close()
    assert (feed.reconnects, feed.state) == (3, "closed")
    indices = [frame.index for frame in seen.frames]
    assert indices == sorted(set(indices)), "numbers go on after a loss"


def test_a_camera_that_is_not_there_at_first_is_waited_for(
    server: MjpegServer, tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    server.stop()
    feed = started(seen, tmp_path, source=server.url)
    until(lambda: feed.state == "lost")
    assert "camera 'yard' is lost, trying again: " in caplog.text
    assert "got connection refused" in feed.reason
    server.start()
    until(lambda: bool(seen.frames))
    feed.close()
    assert seen.states[:2] == ["lost", "running"]
    assert feed.reason == ""


def test_what_nobody_thought_of_is_a_loss_and_not_the_end(
    server: MjpegServer, tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, opened = Seen(), feeds.open_camera

    def fails(*_: object, **__: object) -> None:
        monkeypatch.setattr(feeds, "open_camera", opened)
        raise ZeroDivisionError

    monkeypatch.setattr(feeds, "open_camera", fails)
    feed = started(seen, tmp_path, source=server.url)
    until(lambda: bool(seen.frames))
    feed.close()
    assert seen.states[:2] == ["lost", "running"]


def test_a_picture_that_stands_still_for_too_long_is_frozen(
    server: MjpegServer, tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    feed = started(seen, tmp_path, source=server.url, frozen_s=0.2)
    until(lambda: feed.state == "frozen")
    server.shade = 90
    until(lambda: feed.state == "running")
    feed.close()
    assert "camera 'yard' is frozen" in caplog.text
    assert feed.reconnects == 0


def test_a_changed_resolution_goes_on(server: MjpegServer, tmp_path: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, tmp_path, source=server.url)
    until(lambda: bool(seen.frames))
    server.size = (96, 72)
    until(lambda: seen.frames[-1].pixels.shape == (72, 96, 3))
    feed.close()
    assert seen.frames[0].pixels.shape == (48, 64, 3)


def test_waits_stay_short_enough_to_be_back_within_three_seconds() -> None:
    assert max(feeds.BACK.wait_s(failures) for failures in range(50)) <= 1.0


def test_closing_does_not_wait_for_a_camera_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, release = threading.Event(), threading.Event()

    def hang(address: str, **_: object) -> None:
        connecting.set()
        assert release.wait(30.0)
        raise CameraError(address, expected="a camera", got="none", do="check it")

    monkeypatch.setattr(feeds, "open_camera", hang)
    monkeypatch.setattr(feeds, "_CLOSE_S", 0.05)
    seen = Seen()
    feed = started(seen, tmp_path, source="rtsp://nobody.invalid/live")
    assert connecting.wait(5.0)
    feed.close()
    assert feed._thread.is_alive()
    release.set()
    feed._thread.join(5.0)
    assert not feed._thread.is_alive()
    assert seen.states == ["closed"], "what the thread found later is not told"


def test_the_same_picture_after_a_loss_is_no_frozen_one(tmp_path: Path) -> None:
    feed = Feed(CameraSettings(name="yard", source="rtsp://x", frozen_s=5.0), tmp_path, {}, Seen().offer)
    picture = np.full((48, 64, 3), 60, np.uint8)
    feed._take(Frame(picture, captured_at=0.0))
    feed._become("lost")
    feed._take(Frame(picture, captured_at=60.0))
    assert (feed.state, feed.reconnects) == ("running", 1)
    feed._take(Frame(picture, captured_at=65.0))
    assert feed.state == "frozen"
