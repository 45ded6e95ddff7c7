"""A camera's thread: reads it, thins it out, sees what moved and what stands still, and hands frames on."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2

from edge_ravlm.errors import CameraError, UsageError
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.camera import LiveCapture, Reconnect, describe, open_camera
from edge_ravlm.runtime.scene import is_still
from edge_ravlm.runtime.watching.settings import CameraSettings

log = logging.getLogger(__name__)

BACK = Reconnect(first_wait_s=0.5, longest_wait_s=1.0)
"""A camera that is back is seen within a second and the time that connecting takes."""

_WAIT_S = 0.25
_CLOSE_S = 2.0
_COMPARED = Preprocess(height=128, width=128)
_GLANCE = (16, 16)

Offer = Callable[[str, Frame, frozenset[str]], object]
"""Takes a camera's name, a frame, and the watches that something moved for."""


class Feed:
    """One camera, read in a thread of its own; it comes back after every loss, until it is closed or ends.

    Args:
        settings: of the camera.
        base: the folder that a relative path starts from.
        motions: by watch, the region that has to move before it is asked.
        offer: takes the frames.
        changed: told after the camera's state changed.

    Attributes:
        state: "opening", "running", "lost", "frozen", "ended" or "closed".
        frames: handed on.
        reconnects: times that it came back.
        reason: why it ended, or is lost.
        failed: whether that was an error.
    """

    def __init__(
        self,
        settings: CameraSettings,
        base: Path,
        motions: Mapping[str, Region | None],
        offer: Offer,
        changed: Callable[[Feed], object] = lambda _: None,
    ) -> None:
        self.settings, self.motions = settings, dict(motions)
        self.state, self.reason, self.failed = "opening", "", False
        self.frames = self.reconnects = self.dropped = 0
        self._base, self._offer, self._changed = base, offer, changed
        self._closing, self._turning = threading.Event(), threading.RLock()
        self._still, self._last = _Stillness(settings.frozen_s), dict[str, Pixels]()
        self._due_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"feed {settings.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading soon; does not wait, so that many can end at the same time before they are closed."""
        self._closing.set()

    def close(self) -> None:
        """Stop reading; waits for the thread, but not for long.

        Connecting to a camera that says nothing takes seconds and cannot be interrupted: its thread then releases
        the camera by itself, and nobody hears of it any more.
        """
        self.stop()
        self._thread.join(_CLOSE_S)
        self._become("closed")

    @property
    def has_ended(self) -> bool:
        """Whether no frame will come any more."""
        return self.state in ("ended", "closed")

    def _run(self) -> None:
        wait_s = BACK.first_wait_s
        while not self._closing.is_set():
            try:
                self._read()
                wait_s = BACK.first_wait_s
            except UsageError as error:
                self._end(str(error), failed=True)
            except Exception as error:  # a live source may come yet, a file will not
                if not isinstance(error, CameraError):
                    log.exception("camera '%s'", self.settings.name)
                if not self._is_live:
                    self._end(str(error), failed=True)
                    break
                self._become("lost", str(error))
            if self.has_ended:
                break
            self._closing.wait(wait_s)
            wait_s = min(2 * wait_s, BACK.longest_wait_s)

    def _read(self) -> None:
        with LiveCapture(
            open_camera(self._address, name=self.settings.name, loop=self.settings.loop, reconnect=BACK)
        ) as live:
            while not self._closing.is_set() and not self.has_ended:
                ended = live.ended
                frame = live.newest(_WAIT_S)
                self.dropped = live.dropped
                if frame is not None:
                    self._take(frame)
                elif ended:
                    self._end(live.reason)
                    return
                elif live.camera.state.value == "lost":
                    self._become("lost", "its connection broke")

    def _take(self, frame: Frame) -> None:
        if self.state == "lost":  # nobody knows whether the picture stood still meanwhile
            self._still = _Stillness(self.settings.frozen_s)
        is_frozen = self._is_live and self._still.add(frame)
        self._become("frozen" if is_frozen else "running")
        if frame.captured_at < self._due_at:
            return
        if self.settings.fps:
            on_time = self._due_at + 1 / self.settings.fps
            self._due_at = on_time if on_time > frame.captured_at else frame.captured_at + 1 / self.settings.fps
        self.frames += 1
        self._offer(self.settings.name, frame, self._moved(frame))
        if self.frames == self.settings.frames:
            self._end("as many frames as were asked for")

    def _moved(self, frame: Frame) -> frozenset[str]:
        """The watches that something moved for since they were last asked."""
        moved = set()
        for name, region in list(self.motions.items()):
            try:
                now = _COMPARED(frame, region)
            except UsageError:  # the picture became smaller: let the watch itself say so
                moved.add(name)
                continue
            before = self._last.get(name)
            if before is None or not is_still(before, now):
                self._last[name] = now
                moved.add(name)
        return frozenset(moved)

    @property
    def _address(self) -> str:
        source = self.settings.source
        return str(self._base / source) if describe(source).name in _FILES else source

    @property
    def _is_live(self) -> bool:
        return describe(self._address).name not in _FILES

    def _end(self, reason: str, *, failed: bool = False) -> None:
        self.failed = failed
        self._become("ended", reason)

    def _become(self, state: str, why: str = "") -> None:
        with self._turning:  # a thread that `close` did not wait for must not take "closed" back
            if state == self.state or self.state in ("ended", "closed"):
                return
            self.reconnects += self.state == "lost" and state == "running"
            level = logging.WARNING if state in ("lost", "frozen") or self.failed else logging.INFO
            doing = f"{state}, trying again" if state == "lost" else state
            log.log(level, "camera '%s' is %s%s", self.settings.name, doing, f": {why}" if why else "")
            if state != "closed":  # by us, which is no news
                self.reason = why
            self.state = state
            self._changed(self)


_FILES = frozenset({"file", "folder", "image"})


class _Stillness:
    """Whether a picture has not changed at all for too long: a real camera's always flickers."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen, self._since = -1, 0.0

    def add(self, frame: Frame) -> bool:
        seen = zlib.crc32(cv2.resize(frame.pixels, _GLANCE, interpolation=cv2.INTER_AREA).tobytes())
        if seen != self._seen:
            self._seen, self._since = seen, frame.captured_at
        return 0 < self._limit_s <= frame.captured_at - self._since
