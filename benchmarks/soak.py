"""Does it go on? Four looping recordings and a network camera that is killed again and again, watched for a while.

    python benchmarks/soak.py --json [--minutes 20] [--kills 20]

Each recording is the package's own clip at 10 frames a second with two watches; the network camera is MJPEG over HTTP
from a process of its own, killed and started again in even intervals. Memory is this process's resident set, its
growth that from a fifth of the time (when every cache is full) to the end, by the medians of its readings around both.

``slowest_return_s`` is the longest time from a server's return to the camera's first frame after it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import msgspec
from common import setting

import edge_ravlm
from edge_ravlm.console import complain, progress, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.runtime.apps.demo import load_clip
from edge_ravlm.runtime.bench.meter import resident_mb
from edge_ravlm.runtime.bench.report import figure_rows
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.watching.app import App

FLAVOR, THREADS = "cpu-u8", 2
SOURCES, FPS, BUDGET_MS = 4, 10, 200.0
_DOWN_S = 2.0
_READ_EVERY_S = 1.0
_PATIENCE_S = 30.0


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long; 20 unless told")
    parser.add_argument("--kills", type=int, default=20, help="of the network camera; 20 unless told")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-ravlm-soak-") as folder:
            found = soaked(Path(folder), 60 * arguments.minutes, arguments.kills)
    except EdgeRavlmError as error:
        complain(str(error))
        return 1
    if arguments.json:
        say_json(found)
    else:
        table("", ("figure", "value"), figure_rows(found))
    return 0


def soaked(folder: Path, seconds: float, kills: int) -> dict[str, Any]:
    """Watch for so long."""
    network = Network()
    path = folder / "app.toml"
    teaching = get_context("spawn").Process(target=_teach, args=(path, network.url))
    teaching.start()  # in a process of its own: this one is to be an app, and was nothing else before
    teaching.join()
    answers: dict[tuple[str, str], Tally] = defaultdict(Tally)
    rss_mb, returns_s = list[float](), list[float]()
    with App(path, on_answer=lambda row: answers[row["camera"], row["watch"]].add(row["frame"])) as app:
        running = threading.Thread(target=app.run)
        running.start()
        began = time.monotonic()
        with progress("soaking", int(seconds)) as advance:
            for number in range(1, kills + 1):
                _read(rss_mb, began + seconds * number / (kills + 1), began, advance)
                network.kill()
                time.sleep(_DOWN_S)
                returns_s.append(_returned(app, network))
            _read(rss_mb, began + seconds, began, advance)
        feeds = dict(app.feeds)
        app.stop()
        running.join()
        handed = {name: feed.frames for name, feed in feeds.items()}
        summary = app.summary()
    network.kill()
    settled = len(rss_mb) // 5
    start, end = (statistics.median(part) for part in (rss_mb[settled : settled + 30], rss_mb[-30:]))
    return {
        "minutes": round(seconds / 60, 2),
        "answers": sum(tally.count for tally in answers.values()),
        "lost": sum(handed[camera] - tally.count for (camera, _), tally in answers.items()),
        "reordered": sum(tally.reordered for tally in answers.values()),
        "deadline_misses": summary["deadline_misses"],
        "levels": summary["levels"],
        "rss_mb": round(end, 1),
        "rss_growth": round(end / start - 1, 4),
        "kills": kills,
        "reconnects": feeds["network"].reconnects,
        "slowest_return_s": round(max(returns_s, default=0.0), 3),
        **setting(app.ravlm.bundle, FLAVOR, THREADS),
    }


@dataclass
class Tally:
    """The frames that one watch was answered about; kept as numbers, for a list would be the growth that is sought."""

    count: int = 0
    reordered: int = 0
    last: int = -1

    def add(self, frame: int) -> None:
        """One more answer; one that is not about a later frame than the last counts as reordered."""
        self.count += frame > self.last
        self.reordered += frame <= self.last
        self.last = max(self.last, frame)


def _read(rss_mb: list[float], until: float, began: float, advance: Any) -> None:
    while time.monotonic() < until:
        rss_mb.append(resident_mb()[0])
        advance(completed=int(time.monotonic() - began))
        time.sleep(min(_READ_EVERY_S, max(0.0, until - time.monotonic())))


def _returned(app: App, network: Network) -> float:
    """Start the network camera again; seconds until its first frame."""
    feed = app.feeds["network"]
    seen = feed.reconnects
    network.start()
    began = time.monotonic()
    while feed.reconnects == seen and time.monotonic() < began + _PATIENCE_S:
        time.sleep(0.01)
    return time.monotonic() - began


def _teach(path: Path, url: str) -> None:
    """Write an app and its memory."""
    clip_path, clip = load_clip()
    with open_camera(clip_path) as camera:
        frames = [frame.pixels for frame in camera.frames()]
    with edge_ravlm.load("starter", memory=path.parent / "yard.memory", threads=THREADS) as ravlm:
        ravlm.settle()
        for thing in clip.things:
            for state, rows in clip.teach[thing.name].items():
                for row in rows:
                    ravlm.remember(frames[row], thing.states[state], region=thing.box())
    cameras: list[dict[str, object]] = [
        {"name": f"yard{n}", "source": str(clip_path), "fps": FPS, "loop": True} for n in range(SOURCES)
    ]
    cameras.append({"name": "network", "source": url, "fps": FPS})
    watches = []
    for name in [str(one["name"]) for one in cameras]:
        for thing in clip.things[:2]:
            region = f"{thing.box().name}={','.join(map(str, thing.region))}"
            watch = {"camera": name, "question": thing.question, "region": region}
            watches.append({"name": f"{name}-{thing.name}", **watch})
    parts: dict[str, Sequence[Mapping[str, object]]] = {
        "cameras": cameras,
        "watches": watches,
        "sinks": [{"kind": "file", "path": "events.jsonl"}],
    }
    top = _toml({"memory": "yard.memory", "threads": THREADS, "budget_ms": BUDGET_MS})
    path.write_text(top + "".join(f"[[{name}]]\n{_toml(row)}" for name, rows in parts.items() for row in rows))


def _toml(row: Mapping[str, object]) -> str:
    """Texts, numbers and booleans are spelt as in JSON."""
    return "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in row.items())


class Network:
    """An MJPEG camera in a process of its own, always on the same port."""

    def __init__(self) -> None:
        self._processes = get_context("spawn")
        self._process: BaseProcess | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/live.mjpg"

    def start(self) -> None:
        """Serve; returns once it listens."""
        here, there = self._processes.Pipe()
        self._process = self._processes.Process(target=_serve, args=(self.port, there), daemon=True)
        self._process.start()
        self.port = here.recv()

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _serve(port: int, listening: Any) -> None:
    path, _ = load_clip()
    with open_camera(path) as camera:
        pictures = [cv2.imencode(".jpg", f.pixels)[1].tobytes() for f in camera.frames() if f.index % 3 == 0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            _stream(self, pictures)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    listening.send(server.server_port)
    server.serve_forever()


def _stream(request: BaseHTTPRequestHandler, pictures: Sequence[bytes]) -> None:
    try:
        while True:
            for jpeg in pictures:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                request.wfile.write(head.encode() + jpeg + b"\r\n")
                time.sleep(1 / FPS)
    except OSError:  # it hung up
        return


if __name__ == "__main__":
    sys.exit(main())
