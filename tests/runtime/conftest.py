"""The starter bundle, loaded once per test file, and a few frames of the demo clip."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pytest

from edge_ravlm.frames import Pixels, Region
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.apps.demo import load_clip
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.pipeline import Ravlm

GENEROUS_MS = 600_000.0
"""A budget that no machine misses."""


@dataclass(frozen=True)
class Yard:
    """Two frames of each state of the demo clip's gate, seconds apart."""

    closed: Pixels
    closed_later: Pixels
    open: Pixels
    open_later: Pixels
    gate: Region


@pytest.fixture(scope="session")
def yard() -> Yard:
    path, clip = load_clip()
    wanted: dict[int, Pixels] = {14: np.empty(0), 30: np.empty(0), 82: np.empty(0), 90: np.empty(0)}
    with open_camera(path) as camera:
        for frame in camera.frames():
            if frame.index in wanted:
                wanted[frame.index] = frame.pixels
            if frame.index == max(wanted):
                break
    (gate,) = (thing.box() for thing in clip.things if thing.name == "gate")
    return Yard(*wanted.values(), gate=gate)


@pytest.fixture(scope="module")
def starter() -> Iterator[Ravlm]:
    """The starter bundle with a memory that goes with the test file."""
    with load("starter", threads=1, budget_ms=GENEROUS_MS) as opened:
        yield opened


@pytest.fixture
def ravlm(starter: Ravlm) -> Iterator[Ravlm]:
    """The starter bundle with an empty memory."""
    yield starter
    starter.forget([entry.id for entry in starter.memory.entries()])


@pytest.fixture(scope="session")
def strange() -> Pixels:
    """A picture that looks like nothing in the yard."""
    blocks = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(blocks, (320, 240), interpolation=cv2.INTER_NEAREST), np.uint8)


@pytest.fixture(scope="session")
def rules() -> Answering:
    """Round numbers to reason with; the bundle's own are fitted."""
    return Answering(image_floor=0.3, text_floor=0.3, sibling_floor=0.5, sharpness=10.0, abstain_below=0.6)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """until(condition): wait for what another thread is about to do."""

    def wait(condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < give_up, "it never happened"
            time.sleep(0.005)

    return wait


class MjpegServer:
    """A network camera: MJPEG over HTTP, stopped and started at will, always on the same port."""

    def __init__(self) -> None:
        self.size, self.shade = (64, 48), 55
        self.has_stream = True
        self.sending = threading.Event()
        self.sending.set()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://admin:s3cret@127.0.0.1:{self.port}/live.mjpg"

    def start(self) -> None:
        camera, self.stopping = self, threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.stream(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = False  # so that closing waits for the connections
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stream(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if not self.has_stream:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        with contextlib.suppress(OSError):
            while not self.stopping.wait(0.01):
                if self.sending.is_set():
                    jpeg = cv2.imencode(".jpg", np.full((self.size[1], self.size[0], 3), self.shade, np.uint8))[
                        1
                    ].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    request.wfile.write(head.encode() + jpeg + b"\r\n")

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    server = MjpegServer()
    yield server
    server.stop()
