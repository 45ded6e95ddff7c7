"""Feeds of a real RTSP server, which is killed, stalled, frozen and started anew."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from edge_ravlm.runtime.apps.demo import load_clip
from tests.runtime.watching.test_feeds import Seen, started

Until = Callable[[Callable[[], bool]], None]

PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).with_name("rtsp_server.py")
PACKAGES = (
    "apt's python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base, gstreamer1.0-plugins-good and, for "
    "H.264, gstreamer1.0-plugins-ugly"
)


class RtspServer:
    """A network camera in a process of its own, always on the same port."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/live"

    def start(self, width: int = 160, height: int = 120) -> None:
        """Serve; returns once it listens."""
        command = [PYTHON, str(SCRIPT), str(self.port), str(width), str(height), self._codec]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != "listening":
            self.kill()
            if said.startswith("no "):
                pytest.skip(f"GStreamer has {said} here: needs {PACKAGES}")
            raise AssertionError(said or "it died")

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
        self._process = None

    def tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@pytest.fixture(scope="session")
def library() -> None:
    """What the server imports is there."""
    trial = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        subprocess.run([PYTHON, "-c", trial], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no GStreamer RTSP server here: needs {PACKAGES}")


@pytest.fixture(params=["jpeg", "h264"])
def rtsp(library: None, request: pytest.FixtureRequest) -> Iterator[RtspServer]:
    server = RtspServer(request.param)
    server.start()
    yield server
    server.kill()


one_codec = pytest.mark.parametrize("rtsp", ["jpeg"], indirect=True)
"""For what does not depend on how pictures are compressed."""


def check_order(seen: Seen) -> None:
    """Numbers and clocks only ever go up, whatever the stream's own timestamps did."""
    with seen.lock:
        assert all(a.index < b.index and a.captured_at < b.captured_at for a, b in pairwise(seen.frames))


def test_a_killed_server_is_found_again_in_whatever_resolution(rtsp: RtspServer, tmp_path: Path, until: Until) -> None:
    seen, beside = Seen(), Seen()
    clip, _ = load_clip()
    other = started(beside, tmp_path, source=str(clip), loop=True)
    feed = started(seen, tmp_path, source=rtsp.url)
    until(lambda: len(seen.frames) > 5)
    assert seen.frames[0].pixels.shape == (120, 160, 3)
    rtsp.kill()
    until(lambda: feed.state == "lost")
    before, others = len(seen.frames), len(beside.frames)
    until(lambda: len(beside.frames) > others + 5)
    assert len(seen.frames) == before
    rtsp.start(320, 240)
    until(lambda: len(seen.frames) > before + 5)
    assert (feed.state, feed.reconnects) == ("running", 1)
    assert seen.frames[-1].pixels.shape == (240, 320, 3)
    for one in (feed, other):
        one.close()
    assert seen.states == ["running", "lost", "running", "closed"]
    assert beside.states == ["running", "closed"], "the other camera noticed nothing"
    check_order(seen)
    check_order(beside)


def test_a_picture_that_stands_still_is_frozen_until_it_moves(rtsp: RtspServer, tmp_path: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, tmp_path, source=rtsp.url, frozen_s=1.0)
    until(lambda: len(seen.frames) > 5)
    rtsp.tell("freeze")
    until(lambda: feed.state == "frozen")
    rtsp.tell("move")
    until(lambda: feed.state == "running")
    feed.close()
    assert seen.states == ["running", "frozen", "running", "closed"]
    assert feed.reconnects == 0
    check_order(seen)


@one_codec
def test_killed_again_and_again_also_before_it_is_back(rtsp: RtspServer, tmp_path: Path, until: Until) -> None:
    seen = Seen()
    feed = started(seen, tmp_path, source=rtsp.url)
    for times in range(3):
        until(lambda: feed.state == "running")
        assert feed.reconnects == times
        rtsp.kill()
        until(lambda: feed.state == "lost")
        rtsp.start()
        if times == 1:
            rtsp.kill()  # perhaps while it connects
            rtsp.start()
    until(lambda: feed.reconnects == 3)
    feed.close()
    check_order(seen)


@one_codec
def test_a_server_that_stalls_is_lost_until_it_goes_on(rtsp: RtspServer, tmp_path: Path, until: Until) -> None:
    """Its connections stay open, and new ones are taken by its system; it only says nothing."""
    seen = Seen()
    feed = started(seen, tmp_path, source=rtsp.url)
    until(lambda: len(seen.frames) > 5)
    rtsp.send(signal.SIGSTOP)
    until(lambda: feed.state == "lost")
    rtsp.send(signal.SIGCONT)
    until(lambda: feed.state == "running")
    feed.close()
    assert seen.states == ["running", "lost", "running", "closed"]
    check_order(seen)


@one_codec
@pytest.mark.parametrize("stalled", [False, True], ids=["killed", "stalled"])
def test_a_lost_camera_is_closed(rtsp: RtspServer, tmp_path: Path, until: Until, *, stalled: bool) -> None:
    seen = Seen()
    feed = started(seen, tmp_path, source=rtsp.url)
    until(lambda: bool(seen.frames))
    if stalled:
        rtsp.send(signal.SIGSTOP)
    else:
        rtsp.kill()
    until(lambda: feed.state == "lost")
    feed.close()
    assert feed.state == "closed"
    until(lambda: not feed._thread.is_alive())
    assert seen.states == ["running", "lost", "closed"]


@one_codec
def test_a_server_that_stalls_from_the_start_is_waited_for(rtsp: RtspServer, tmp_path: Path, until: Until) -> None:
    seen = Seen()
    rtsp.send(signal.SIGSTOP)
    feed = started(seen, tmp_path, source=rtsp.url)
    until(lambda: feed.state == "lost")
    rtsp.send(signal.SIGCONT)
    until(lambda: bool(seen.frames))
    feed.close()
    assert seen.states == ["lost", "running", "closed"]


@one_codec
@pytest.mark.skipif(not shutil.which("gst-launch-1.0"), reason="GStreamer's tools (gstreamer1.0-tools) are not here")
def test_a_pipeline_finds_its_killed_server_again(rtsp: RtspServer, tmp_path: Path, until: Until) -> None:
    """GStreamer takes a server that died for the end of the stream."""
    seen = Seen()
    pipeline = f"gst:rtspsrc location={rtsp.url} protocols=tcp latency=0 ! rtpjpegdepay ! jpegdec"
    feed = started(seen, tmp_path, source=pipeline)
    until(lambda: len(seen.frames) > 5)
    rtsp.kill()
    until(lambda: feed.state == "lost")
    rtsp.start()
    until(lambda: feed.state == "running")
    feed.close()
    assert seen.states == ["running", "lost", "running", "closed"]
    check_order(seen)
