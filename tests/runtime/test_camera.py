"""Cameras, tried on real files, a real HTTP stream, refused connections and processes; never on a webcam."""

from __future__ import annotations

import http.server
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.errors import CameraError, UsageError
from edge_ravlm.runtime.camera import (
    Camera,
    CameraState,
    LiveCapture,
    Reconnect,
    describe,
    masked,
    open_camera,
)
from edge_ravlm.runtime.camera.sources import Buffers, FileSource
from tests.runtime.conftest import MjpegServer

SOON = Reconnect(first_wait_s=0.02, longest_wait_s=0.1)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def drain(live: LiveCapture) -> None:
    """Take frames until the capture ends or raises."""
    while not live.ended:
        live.newest(5.0)
    live.newest(0.0)


def shade(i: int) -> int:
    return 20 + 7 * i


def picture(i: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full((size[1], size[0], 3), shade(i), np.uint8)


def film(path: Path, frames: int = 30, codec: str = "MJPG", fps: float = 50.0) -> Path:
    """A clip whose frame ``i`` is a plain grey of ``shade(i)``."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(picture(i))
    writer.release()
    return path


def break_packet(path: Path, which: int) -> None:
    """Overwrite one encoded frame inside an AVI with noise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"movi")
    for _ in range(which + 1):
        at = data.index(b"00dc", at + 1)
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    data[at + 8 : at + 8 + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return film(tmp_path / "clip.avi")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "stills"
    path.mkdir()
    for i in (10, 2, 1):
        cv2.imwrite(str(path / f"img{i}.png"), picture(i))
    (path / "notes.txt").write_text("not an image")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what an address names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        (0, "webcam"),
        ("2", "webcam"),
        ("/dev/video0", "webcam"),
        (Path("/dev/video1"), "webcam"),
        ("rtsp://cam/1", "rtsp"),
        ("RTSPS://cam/1", "rtsp"),
        ("http://cam/live", "http"),
        ("https://cam/snap.jpg", "http"),
        ("gst:videotestsrc ! identity", "gstreamer"),
        ("walk.mp4", "file"),
        ("01.mp4", "file"),
        ("./0", "file"),
        (Path("0"), "file"),
        (Path("photo.JPG"), "image"),
        (".", "folder"),
    ],
)
def test_describe(uri: str | int | Path, kind: str) -> None:
    assert describe(uri).name == kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:s3cret@10.0.0.2:554/ch1", "rtsp://admin:***@10.0.0.2:554/ch1"),
        ("rtsp://admin:p@ss:w@cam/ch@1", "rtsp://admin:***@cam/ch@1"),
        ("rtsp://admin:pa/ss@cam/1", "rtsp://admin:***@cam/1"),
        ("rtsp://:s3cret@cam/1", "rtsp://:***@cam/1"),
        ("http://cam:8080/video@2", "http://cam:8080/video@2"),
        ("http://cam/v?user=me&password=s3cret&ch=1", "http://cam/v?user=me&password=***&ch=1"),
        ("http://cam/v?token=s3cret", "http://cam/v?token=***"),
        (
            "gst:rtspsrc location=rtsp://me:s3cret@cam/1 user-pw=s3cret ! decodebin",
            "gst:rtspsrc location=rtsp://me:***@cam/1 user-pw=*** ! decodebin",
        ),
        ("rtsp://me@home.org:s3cret@cam/1", "rtsp://me@home.org:***@cam/1"),
        ('gst:rtspsrc user-pw="my s3cret" ! decodebin', "gst:rtspsrc user-pw=*** ! decodebin"),
        ("http://cam/v?pwd=ab&s3cret&ch=1", "http://cam/v?pwd=***&ch=1"),
        ("http://cam/v?auth=s3cret", "http://cam/v?auth=***"),
        ("http://cam/v?loginpas=s3cret&codec=h264", "http://cam/v?loginpas=***&codec=h264"),
        ("clips/walk.mp4", "clips/walk.mp4"),
    ],
)
def test_passwords_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_a_video_whose_name_is_not_utf8_is_refused(clip: Path, tmp_path: Path) -> None:
    """OpenCV would take the whole process down."""
    path = tmp_path / "no\udcff.avi"
    shutil.copy(clip, path)
    with pytest.raises(CameraError, match="a name that is not UTF-8"), open_camera(path) as camera:
        camera.read()


# --- in order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "FFV1")])
def test_every_frame_of_a_file_in_order(tmp_path: Path, suffix: str, codec: str) -> None:
    path = film(tmp_path / f"clip.{suffix}", codec=codec)
    before = time.monotonic()
    with open_camera(path) as camera:
        assert camera.state is CameraState.OPENING
        frames = list(camera.frames())
        assert (camera.state, camera.reason, camera.corrupt) == (CameraState.ENDED, "end of file", 0)
        assert list(camera.frames()) == []
    assert [f.index for f in frames] == list(range(30))
    assert all(abs(float(f.pixels.mean()) - shade(f.index)) < 4 for f in frames)
    assert all(f.pixels.shape == (48, 64, 3) and f.source == camera.name for f in frames)
    stamps = [before, *(f.captured_at for f in frames), time.monotonic()]
    assert stamps == sorted(stamps)


def test_frames_stay_the_callers(clip: Path) -> None:
    with open_camera(clip) as camera:
        first, second = camera.read(), camera.read()
    assert first is not None
    assert second is not None
    assert abs(float(first.pixels.mean()) - shade(0)) < 4
    assert not np.shares_memory(first.pixels, second.pixels)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("avi", "MJPG")])
def test_pictures_are_written_over_once_nobody_holds_a_part_of_them(tmp_path: Path, suffix: str, codec: str) -> None:
    path = film(tmp_path / f"clip.{suffix}", codec=codec)
    places, corners = list[int](), list[np.ndarray]()
    with open_camera(path) as camera:
        for frame in camera.frames():
            places.append(frame.pixels.ctypes.data)
            if frame.index < 10:
                corners.append(frame.pixels[:8, :8])
            del frame
    assert all(abs(float(corner.mean()) - shade(i)) < 4 for i, corner in enumerate(corners))
    assert len(set(places[:10])) == 10
    assert len(set(places[10:])) == 2, "the generator holds one while the next is read"


def test_buffers_are_of_the_newest_size_and_not_without_end() -> None:
    buffers = Buffers()
    held = [np.zeros((4, 4, 3), np.uint8) for _ in range(20)]
    for one in held:
        buffers.keep(one)
        buffers.keep(one)
    assert buffers.free() is None
    assert len({id(one) for one in buffers._pictures}) == len(buffers._pictures) <= 6
    del held, one
    small = buffers.free()
    assert small is not None
    assert buffers.free() is not small, "it is held now"
    large = np.zeros((8, 8, 3), np.uint8)
    buffers.keep(large)
    assert buffers.free() is None
    del large
    assert np.shape(buffers.free()) == (8, 8, 3)


def test_folder_in_natural_order(folder: Path) -> None:
    with open_camera(folder) as camera:
        frames = list(camera.frames())
    assert [Path(f.source).name for f in frames] == ["img1.png", "img2.png", "img10.png"]
    assert [int(f.pixels[0, 0, 0]) for f in frames] == [shade(1), shade(2), shade(10)]


def test_a_broken_image_in_a_folder_is_skipped_and_counted(folder: Path) -> None:
    (folder / "img3.png").write_bytes(b"no image")
    with open_camera(folder, name="shelf") as camera:
        frames = list(camera.frames())
    assert [(f.index, f.source) for f in frames] == [(0, "shelf"), (1, "shelf"), (3, "shelf")]
    assert camera.corrupt == 1


def test_single_image(folder: Path) -> None:
    with open_camera(str(folder / "img2.png")) as camera:
        assert [int(f.pixels[0, 0, 0]) for f in camera.frames()] == [shade(2)]


def test_a_broken_frame_in_a_file_is_skipped_and_counted(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    break_packet(clip, 10)
    with open_camera(clip) as camera:
        indices = [f.index for f in camera.frames()]
    assert indices == [i for i in range(30) if i != 10]
    assert camera.corrupt == 1
    assert caplog.records == []


def test_a_frame_that_ffmpeg_cannot_decode_is_not_the_end(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.avi", codec="png ")
    break_packet(path, 10)
    with open_camera(path) as camera:
        frames = list(camera.frames())
    assert camera.corrupt == 1
    assert len(frames) >= 28  # FFmpeg's threads may lose the one after it too
    assert int(frames[-1].pixels[0, 0, 0]) == shade(29)


def test_a_file_cut_short_is_told_from_a_clean_end(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    with open_camera(clip) as camera:
        frames = list(camera.frames())
    assert 0 < len(frames) < 27
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"after {len(frames) + camera.corrupt} of the 30 frames" in record.getMessage()


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "FFV1"), ("avi", "XVID")])
@pytest.mark.parametrize("rewinds", ["yes", "no", "it only says so"])
def test_loop_goes_on_counting(
    tmp_path: Path, suffix: str, codec: str, rewinds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[str]()
    connect = FileSource._connect
    monkeypatch.setattr(FileSource, "_connect", lambda source: opened.append(codec) or connect(source))
    if rewinds != "yes":
        monkeypatch.setattr(FileSource, "rewind", lambda _: rewinds != "no")
    with open_camera(film(tmp_path / f"clip.{suffix}", codec=codec), loop=True) as camera:
        frames = [frame for frame, _ in zip(camera.frames(), range(75), strict=False)]
    assert [f.index for f in frames] == list(range(75))
    assert all(abs(float(f.pixels.mean()) - shade(f.index % 30)) < 4 for f in frames)
    assert len(opened) == (1 if rewinds == "yes" else 3)


def test_realtime_holds_frames_back_until_they_are_due(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.avi", frames=6, fps=50)
    with open_camera(path, realtime=True) as camera:
        frames = list(camera.frames())
    assert all(f.captured_at - frames[0].captured_at >= f.index / 50 - 0.002 for f in frames)


# --- what cannot be opened ----------------------------------------------------------------------------------


def refusal(uri: str | int | Path, **options: float) -> str:
    with pytest.raises(CameraError) as caught:
        open_camera(uri, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.count("\n") == 0
    assert message.endswith(".")
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "expected a video file, got no such file or directory" in refusal(tmp_path / "none.mp4")
    assert "expected a readable image, got no such file" in refusal(tmp_path / "none.png")


def test_text_called_mp4(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 1000)
    assert "got 6000 bytes that are no complete video file" in refusal(tmp_path / "text.mp4")


def test_an_mp4_without_its_end(tmp_path: Path) -> None:
    path = film(tmp_path / "clip.mp4", codec="mp4v")
    path.write_bytes(path.read_bytes()[:1500])
    assert "no complete video file" in refusal(path)


def test_folders_without_images(tmp_path: Path) -> None:
    assert "got an empty folder" in refusal(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / ".hidden.png").touch()
    assert "got 2 file(s), none of them an image" in refusal(tmp_path)


def test_a_folder_of_broken_images_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with open_camera(tmp_path) as camera, pytest.raises(CameraError, match="got no readable frame"):
        list(camera.frames())
    assert camera.corrupt == 1


@pytest.mark.skipif(Path("/dev/video63").exists(), reason="this machine has 64 webcams")
@pytest.mark.parametrize("uri", [63, "63", "/dev/video63"])
def test_absent_webcam(uri: str | int) -> None:
    assert "expected a webcam, got no device /dev/video63" in refusal(uri)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_refused_connection_names_the_camera_but_not_its_password(scheme: str) -> None:
    message = refusal(f"{scheme}://admin:s3cret@127.0.0.1:{free_port()}/x")
    assert "admin:***@127.0.0.1" in message
    assert "got connection refused" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_never_answers(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        message = refusal(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x", timeout_s=0.2)
    assert "got no answer within 0.2 s" in message


def test_a_server_without_that_stream(server: MjpegServer) -> None:
    server.has_stream = False
    assert "got a server that has none there" in refusal(server.url)


def test_an_unusable_port_does_not_give_the_password_away() -> None:
    message = refusal("rtsp://admin:s3c/ret@127.0.0.1/x")
    assert "s3c" not in message
    assert "ret@" not in message


def test_wrong_usage(clip: Path, server: MjpegServer) -> None:
    with pytest.raises(UsageError, match="an empty text"):
        open_camera(" ")
    with pytest.raises(UsageError, match="more than 0 seconds"):
        open_camera(clip, timeout_s=0)
    with pytest.raises(UsageError, match="a recording to loop"):
        open_camera(server.url, loop=True)
    with pytest.raises(UsageError, match="first_wait_s"):
        Reconnect(first_wait_s=0)
    with pytest.raises(UsageError, match="attempts"):
        Reconnect(attempts=-1)


def test_nothing_reaches_stderr(tmp_path: Path) -> None:
    broken = film(tmp_path / "broken.avi", codec="png ")
    break_packet(broken, 3)
    (tmp_path / "text.mp4").write_text("hello")
    # In a process of its own, because here the tests' VideoWriter has met FFmpeg first.
    script = """
import sys
from edge_ravlm.errors import CameraError
from edge_ravlm.runtime.camera import open_camera
with open_camera(sys.argv[1]) as camera:
    assert len(list(camera.frames())) >= 28
for uri in sys.argv[2:]:
    try:
        open_camera(uri)
    except CameraError:
        continue
    sys.exit(f"{uri} was opened")
"""
    uris = [str(broken), str(tmp_path / "text.mp4"), "63", f"rtsp://127.0.0.1:{free_port()}/x"]
    ran = subprocess.run([sys.executable, "-c", script, *uris], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# --- newest first -------------------------------------------------------------------------------------------


def test_newest_frame_wins(clip: Path) -> None:
    with LiveCapture(open_camera(clip, realtime=False)) as live:
        until(lambda: live.camera.state is CameraState.ENDED)
        frame = live.newest(1.0)
        assert frame is not None
        assert frame.index == 29
        assert live.dropped == 29
        assert live.newest(1.0) is None
        assert live.ended
        assert live.reason == "end of file"


def test_a_slow_consumer_sees_frames_once_in_order_and_all_are_accounted_for(clip: Path) -> None:
    seen: list[int] = []
    with LiveCapture(open_camera(clip, loop=True)) as live:  # at its own 50 frames a second
        for _ in range(4):
            dropped = live.dropped
            frame = live.newest(5.0)
            assert frame is not None
            seen.append(frame.index)
            until(lambda dropped=dropped: live.dropped > dropped + 1)  # type: ignore[misc]
        live.camera.close()
        last = live.newest(5.0)
        if last is not None:
            seen.append(last.index)
        until(lambda: live.ended)
    assert all(a < b for a, b in pairwise(seen))
    assert live.dropped > 0
    assert len(seen) + live.dropped == seen[-1] + 1


def test_a_quick_consumer_misses_nothing(tmp_path: Path) -> None:
    with LiveCapture(open_camera(film(tmp_path / "slow.avi", frames=6, fps=10))) as live:
        indices = []
        while not live.ended:
            if frame := live.newest(5.0):
                indices.append(frame.index)
    assert len(indices) + live.dropped == 6
    assert indices[0] == 0


def test_newest_waits_no_longer_than_told(server: MjpegServer) -> None:
    with LiveCapture(open_camera(server.url, timeout_s=2.0)) as live:
        assert live.newest(5.0) is not None
        server.sending.clear()
        while live.newest(0.2) is not None:  # what was still on its way
            pass
        assert not live.ended
        assert live.reason == ""


def test_close_while_running(clip: Path) -> None:
    live = LiveCapture(open_camera(clip, loop=True, realtime=False))
    assert live.newest(5.0) is not None
    live.close()
    live.close()
    assert not live._thread.is_alive()
    assert live.camera.state is CameraState.CLOSED
    assert (live.ended, live.reason, live.newest(0.0)) == (True, "closed", None)


def test_close_wakes_a_waiting_consumer(server: MjpegServer) -> None:
    live = LiveCapture(open_camera(server.url, timeout_s=1.0))
    assert live.newest(5.0) is not None
    server.sending.clear()
    while live.newest(0.1) is not None:
        pass
    got: list[object] = []
    consumer = threading.Thread(target=lambda: got.append(live.newest(30.0)))
    consumer.start()
    live.close()
    consumer.join(timeout=10.0)
    assert got == [None]


def test_close_is_bounded_where_a_grab_hangs(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = open_camera(clip, realtime=False, timeout_s=0.05)
    hanging, release = threading.Event(), threading.Event()

    def hang() -> bool:
        hanging.set()
        return not release.wait(20.0)

    monkeypatch.setattr(camera._source, "grab", hang)
    live = LiveCapture(camera)
    assert hanging.wait(5.0)
    live.close()
    assert live._thread.is_alive()
    release.set()  # the thread comes back by itself and releases what close() could not
    live._thread.join(5.0)
    assert not live._thread.is_alive()
    assert camera._source._capture is None  # type: ignore[attr-defined]


def test_errors_of_the_thread_reach_the_consumer(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = open_camera(clip, realtime=False)

    def fail() -> None:
        raise MemoryError("no room for a frame")

    monkeypatch.setattr(camera._source, "retrieve", fail)
    with LiveCapture(camera) as live:
        for _ in range(2):
            with pytest.raises(MemoryError, match="no room"):
                live.newest(5.0)
        assert live.ended
        assert live.reason == "no room for a frame"


# --- streams ------------------------------------------------------------------------------------------------


def test_a_lost_stream_comes_back(server: MjpegServer, caplog: pytest.LogCaptureFixture) -> None:
    with LiveCapture(open_camera(server.url, reconnect=SOON)) as live:
        first = live.newest(5.0)
        assert first is not None
        assert live.camera.state is CameraState.RUNNING
        server.stop()
        until(lambda: live.camera.state is CameraState.LOST)
        live.newest(0.0)  # the last one before the loss may still wait
        assert live.newest(0.3) is None
        assert not live.ended
        server.start()
        again = live.newest(10.0)
        assert again is not None
        assert again.index > first.index
        assert live.camera.state is CameraState.RUNNING
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("is lost" in w for w in warnings)
    assert any("is back" in w for w in warnings)
    assert "s3cret" not in caplog.text


def test_a_frozen_stream_counts_as_lost(server: MjpegServer) -> None:
    with LiveCapture(open_camera(server.url, reconnect=SOON, timeout_s=0.3)) as live:
        assert live.newest(5.0) is not None
        server.sending.clear()
        until(lambda: live.camera.state is CameraState.LOST)
        live.newest(0.0)
        server.sending.set()
        assert live.newest(10.0) is not None


def test_giving_up_after_the_given_attempts(server: MjpegServer) -> None:
    few = Reconnect(first_wait_s=0.01, longest_wait_s=0.02, attempts=2)
    with LiveCapture(open_camera(server.url, reconnect=few)) as live:
        assert live.newest(5.0) is not None
        server.stop()
        with pytest.raises(CameraError, match="a lost connection and 2 failed attempts"):
            drain(live)
        assert live.camera.state is CameraState.ENDED
        assert "2 failed attempts" in live.reason


def test_waits_double_up_to_the_longest() -> None:
    assert [Reconnect().wait_s(n) for n in (0, 1, 2, 3, 4, 5, 10_000)] == [0.5, 1, 2, 4, 8, 8, 8]


def test_close_ends_a_reconnection(server: MjpegServer) -> None:
    live = LiveCapture(open_camera(server.url, reconnect=Reconnect(first_wait_s=60, longest_wait_s=60)))
    server.stop()
    until(lambda: live.camera.state is CameraState.LOST)
    live.close()
    assert not live._thread.is_alive()


def test_a_new_resolution_is_a_new_shape(server: MjpegServer) -> None:
    with LiveCapture(open_camera(server.url)) as live:
        frame = live.newest(5.0)
        assert frame is not None
        assert frame.pixels.shape == (48, 64, 3)
        server.size = (128, 96)
        until(lambda: (f := live.newest(5.0)) is not None and f.pixels.shape == (96, 128, 3))
        assert live.camera.corrupt == 0


def test_a_recording_behind_a_url_ends(clip: Path) -> None:
    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(clip.parent))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        with open_camera(f"http://127.0.0.1:{site.server_port}/clip.avi") as camera:
            assert len(list(camera.frames())) == 30
            assert camera.reason == "end of file"
        site.shutdown()


# --- GStreamer ----------------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in gst-launch-1.0's place; ``$2`` is the pipeline's text, ``$OUT`` its pipe."""
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "GStreamer:    NO")

    def install(script: str) -> None:
        program = tmp_path / "bin" / "gst-launch-1.0"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nfor last; do :; done; OUT=/dev/fd/${{last#fd=}}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return install


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_without_gstreamer_the_error_says_what_to_do(launch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "install gstreamer1.0-tools" in refusal("gst:videotestsrc")


def test_a_pipeline_in_a_process(tmp_path: Path, launch: Callable[[str], None]) -> None:
    film(tmp_path / "clip.mkv", codec="FFV1")
    launch('cat "$2" > $OUT')
    before = open_descriptors()
    with open_camera(f"gst:{tmp_path / 'clip.mkv'}") as camera:
        assert len(list(camera.frames())) == 30
        assert camera.reason == "end of file"
    assert open_descriptors() == before


def test_a_pipeline_that_fails_says_why(launch: Callable[[str], None]) -> None:
    launch('echo "WARNING: erroneous pipeline: no element \\"nosuch\\"" >&2; exit 1')
    assert 'got erroneous pipeline: no element "nosuch"' in refusal("gst:nosuch")
    assert "got no closing quotation" in refusal("gst:nosuch 'x")


def test_a_pipeline_that_stalls_is_ended(tmp_path: Path, launch: Callable[[str], None]) -> None:
    film(tmp_path / "clip.mkv", codec="FFV1")
    launch('cat "$2" > $OUT; exec sleep 60')
    assert "no frame within 0.3 s" in refusal("gst:/dev/null", timeout_s=0.3)
    camera = open_camera(f"gst:{tmp_path / 'clip.mkv'}", timeout_s=0.3, reconnect=Reconnect(attempts=0))
    with LiveCapture(camera) as live, pytest.raises(CameraError, match="a lost connection and 0 failed"):
        drain(live)


@pytest.mark.skipif(not shutil.which("gst-launch-1.0"), reason="GStreamer is not installed here")
def test_a_real_pipeline() -> None:
    test = "gst:videotestsrc pattern=red num-buffers=20 ! video/x-raw,width=322,height=240"
    with open_camera(test) as camera:
        frames = list(camera.frames())
    assert [f.pixels.shape for f in frames] == [(240, 322, 3)] * 20
    assert frames[0].pixels[..., 2].mean() > 200 > 50 > frames[0].pixels[..., 0].mean()
    assert camera.reason == "end of file"


def test_repr_hides_the_password(server: MjpegServer) -> None:
    with open_camera(server.url) as camera:
        assert isinstance(camera, Camera)
        assert "s3cret" not in repr(camera)
        assert "opening" in repr(camera)
