"""What can be asked of a served app, without HTTP: what it sees and says, teaching, asking, what it remembers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import cv2
import numpy as np

from edge_ravlm.errors import CameraError, StorageError, UsageError
from edge_ravlm.frames import Frame, Region, decode_image
from edge_ravlm.runtime.memory import Entry, Where
from edge_ravlm.runtime.serving.board import Board
from edge_ravlm.runtime.watching.app import App
from edge_ravlm.runtime.watching.settings import WatchSettings

WIDEST = 1280
"""Pixels: wider pictures are sent smaller; nobody looks at more, and compressing them takes a device's time."""

MOST_LISTED = 200
"""Memories in one answer."""

Tags = Mapping[str, str | int | float | bool]


class Desk:
    """A served app.

    Args:
        app: opened; it runs in another thread.
        board: that ``app`` writes to.
    """

    def __init__(self, app: App, board: Board) -> None:
        self.app, self.board = app, board
        # One at a time, its picture's decoding included: the cameras' own questions have deadlines, and a picture of
        # a few bytes may take hundreds of MB.
        self._asking, self._closed = threading.Lock(), False

    def close(self) -> None:
        """Wait for what is being answered, and answer no more: models and memory may go then."""
        self._closed = True
        with self._asking:
            pass

    # -- what it sees and says ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Cameras, watches with what they were answered last, and the memory; as plain values."""
        settings, ravlm = self.app.settings, self.app.ravlm
        cameras = []
        for camera in settings.cameras:
            feed, frame = self.app.feeds.get(camera.name), self.app.newest.get(camera.name)
            cameras.append(
                {
                    "name": camera.name,
                    "state": "opening" if feed is None else feed.state,
                    "reason": "" if feed is None else feed.reason,
                    "frames": 0 if feed is None else feed.frames,
                    "width": 0 if frame is None else frame.pixels.shape[1],
                    "height": 0 if frame is None else frame.pixels.shape[0],
                    "age_ms": None if frame is None else _age_ms(frame),
                }
            )
        watches = [
            {
                "name": watch.name,
                "camera": watch.camera,
                "question": watch.question,
                "region": watch.region,
                "tags": watch.tags,
                "answer": self._answer_of(watch),
            }
            for watch in settings.watches
        ]
        memory = {"entries": len(ravlm.memory), "version": ravlm.memory.version}
        account = self.app.account
        return {
            "memory": memory,
            "budget_ms": settings.budget_ms,
            "answers": account.answers,
            "deadline_misses": account.misses,
            "cameras": cameras,
            "watches": watches,
        }

    def picture(self, camera: str) -> bytes:
        """A camera's newest frame as a JPEG, at most WIDEST pixels wide."""
        pixels = self._newest(camera).pixels
        height, width = pixels.shape[:2]
        if width > WIDEST:
            size = (WIDEST, max(1, round(height * WIDEST / width)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])

    def ask(
        self,
        question: str,
        *,
        camera: str | None = None,
        image: bytes | None = None,
        region: str | None = None,
        tags: Tags | None = None,
        budget_ms: float | None = None,
        generate: bool = False,
        hops: int = 1,
    ) -> dict[str, Any]:
        """Answer a question about a camera's newest frame or a picture's bytes; the clock starts with the call."""
        with self._turn():
            frame = self._shown(camera, image)
            answer = self.app.ravlm.ask(
                Frame(frame.pixels),
                question,
                region=_region(region),
                where=Where(tags=tags) if tags else None,
                budget_ms=budget_ms,
                generate=generate or None,
                hops=hops,
            )
        return answer.as_dict()

    # -- what it remembers -------------------------------------------------------------------------------------

    def teach(
        self,
        text: str,
        *,
        camera: str | None = None,
        image: bytes | None = None,
        region: str | None = None,
        answer: str | None = None,
        tags: Tags | None = None,
    ) -> int:
        """Remember a camera's newest frame, or a picture's bytes, with what it shows; the new entry's id."""
        self._check_writable()
        with self._turn():
            frame = self._shown(camera, image)
            return self.app.ravlm.remember(
                Frame(frame.pixels), text, answer=answer or None, tags=tags, region=_region(region)
            )

    def forget(self, id_: int) -> None:
        """Remove an entry; raises MemoryFault where there is none."""
        self._check_writable()
        self.app.ravlm.memory.get([id_])
        self.app.ravlm.forget(id_)

    def memories(self, text: str = "", limit: int = 50) -> dict[str, Any]:
        """The newest entries, or those nearest to a text; their number in all beside them."""
        if not 1 <= limit <= MOST_LISTED:
            raise UsageError("limit", expected=f"1 to {MOST_LISTED}", got=str(limit), do="ask for fewer, or search")
        memory = self.app.ravlm.memory
        if text.strip():
            with self._turn():
                hits = self.app.ravlm.search(text=text, k=limit)
            scores = {hit.id: round(hit.score, 4) for hit in hits}
            found = [{**_plain(entry), "score": scores[entry.id]} for entry in memory.get(list(scores))]
        else:
            found = [_plain(entry) for entry in islice(memory.entries(newest_first=True), limit)]
        return {"entries": len(memory), "shown": found}

    def thumbnail(self, id_: int) -> bytes | None:
        """An entry's picture as a JPEG; None where it has none. Raises MemoryFault where there is no such entry."""
        return self.app.ravlm.memory.get([id_])[0].thumbnail

    # -- their parts -------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._asking:
            if self._closed:
                raise UsageError("request", expected="a running app", got="one that ends", do="start it again")
            yield

    def _newest(self, camera: str) -> Frame:
        names = [one.name for one in self.app.settings.cameras]
        if camera not in names:
            raise UsageError(
                f"camera '{camera}'", expected=f"one of {', '.join(names)}", got="another name", do="take one"
            )
        frame = self.app.newest.get(camera)
        if frame is None:
            feed = self.app.feeds.get(camera)
            why = "none yet" if feed is None or not feed.reason else feed.reason.rstrip(".")
            raise CameraError(f"camera '{camera}'", expected="a frame", got=why, do="try again soon")
        return frame

    def _answer_of(self, watch: WatchSettings) -> dict[str, Any] | None:
        """The last one, if it was asked the same then: the app's file may have changed."""
        row = self.board.answer_of(watch.name)
        same = row is not None and (row["camera"], row["question"]) == (watch.camera, watch.question)
        return row if same else None

    def _check_writable(self) -> None:
        memory = self.app.ravlm.memory
        if memory.read_only:
            raise StorageError(
                f"memory '{memory.folder}'",
                expected="a folder that can be written",
                got="one that the app was started with for reading alone",
                do="let its user write there, and start again",
            )

    def _shown(self, camera: str | None, image: bytes | None) -> Frame:
        if (camera is None) == (image is None):
            got = "neither" if camera is None else "both"
            raise UsageError("picture", expected="a camera's name or an image", got=got, do="give one of them")
        if image is not None:
            return decode_image(np.frombuffer(image, np.uint8), "image")
        assert camera is not None
        return self._newest(camera)


def _region(text: str | None) -> Region | None:
    return Region.parse(text) if text else None


def _age_ms(frame: Frame) -> float:
    return round((time.monotonic() - frame.captured_at) * 1e3, 1)


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "text": entry.text,
        "answer": entry.answer,
        "tags": dict(entry.tags),
        "modality": entry.modality,
        "time": entry.time,
        "pictured": entry.thumbnail is not None,
    }
