"""A camera read in order: opening, timestamps, pacing, broken frames, lost connections."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edge_ravlm.errors import CameraError, FrameError, UsageError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.camera.kinds import SourceKind, as_address, describe, masked
from edge_ravlm.runtime.camera.sources import OpenFailed, Source

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
GRAB_ATTEMPTS = 64
"""OpenCV answers a broken frame and the end of a stream alike: what fails this often in a row has ended."""
GRAB_PATIENCE_S = 1.0
"""No further attempt after this long: a source that is silent, rather than frames that are broken."""
FEW_FRAMES = 3
"""Containers miscount by a frame or two; a file that lacks more than this was cut short."""


class CameraState(str, Enum):
    """What a camera is doing.

    ``opening`` until its first frame, ``lost`` between a broken connection and the next frame, ``ended``
    after a recording's last frame or a failure that was raised, ``closed`` after ``close()``.
    """

    OPENING = "opening"
    RUNNING = "running"
    LOST = "lost"
    ENDED = "ended"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How to get a lost live source back: waits that double up to a limit, and start over after a frame.

    Attributes:
        first_wait_s: seconds before the first attempt, more than 0.
        longest_wait_s: seconds between later attempts, at most.
        attempts: how many in a row before giving up with a CameraError; None never gives up.
    """

    first_wait_s: float = 0.5
    longest_wait_s: float = 8.0
    attempts: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.first_wait_s <= self.longest_wait_s or (self.attempts or 0) < 0:
            raise UsageError(
                "reconnect",
                expected="0 < first_wait_s <= longest_wait_s and attempts >= 0 (or None)",
                got=str(self),
                do="correct these numbers",
            )

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after this many failed attempts."""
        return min(self.first_wait_s * 2.0 ** min(failures, 32), self.longest_wait_s)


UNTIL_BACK = Reconnect()


def open_camera(
    uri: str | int | Path,
    *,
    name: str | None = None,
    realtime: bool | None = None,
    loop: bool = False,
    reconnect: Reconnect = UNTIL_BACK,
    timeout_s: float = TIMEOUT_S,
) -> Camera:
    """Open a source of frames.

    Args:
        uri: a video file, an image, a folder of images, a webcam (``0``, ``/dev/video0``), an ``rtsp://``,
            ``rtsps://``, ``http://`` or ``https://`` URL, or ``gst:`` and a GStreamer pipeline.
        name: what frames call their source; the address (without its password) or the image file otherwise.
        realtime: whether a recording keeps its own pace, as a camera would. None: yes in a LiveCapture, no in
            ``frames()``. Live sources have their own clock and are never paced.
        loop: start a recording again at its end.
        reconnect: what to do when a live source is lost.
        timeout_s: seconds that connecting, or waiting for one frame of a stream, may take (a webcam: 10 s).

    Raises:
        CameraError: nothing readable at the address; one sentence that names it, with passwords masked.
        UsageError: a timeout that is not positive, or ``loop`` for a source that has no end.
    """
    if not timeout_s > 0:
        raise UsageError("timeout_s", expected="more than 0 seconds", got=str(timeout_s), do="give for instance 5")
    address, kind = as_address(uri), describe(uri)
    try:
        source = kind.make(address, timeout_s)
        source.open()
    except OpenFailed as failure:
        raise kind.fault(address, failure.got, failure.do) from None
    if loop and source.fps == 0:
        source.close()
        raise UsageError(
            f"camera '{masked(address)}'",
            expected="a recording to loop",
            got="a live source",
            do="leave out loop",
        )
    return Camera(
        source,
        kind,
        address,
        name=name,
        realtime=realtime,
        loop=loop,
        reconnect=reconnect,
        timeout_s=timeout_s,
    )


class Camera:
    """An open source of frames; made by ``open_camera``.

    Attributes:
        uri: the address, passwords masked.
        name: what its frames call it.
        state: see CameraState.
        reason: why it ended ("end of file", "closed", or the error's sentence); empty until then.
        corrupt: frames skipped because they could not be decoded. Codecs that conceal damage leave none.
        realtime: as given to ``open_camera``.
    """

    def __init__(
        self,
        source: Source,
        kind: SourceKind,
        address: str,
        *,
        name: str | None,
        realtime: bool | None,
        loop: bool,
        reconnect: Reconnect,
        timeout_s: float,
    ) -> None:
        self.uri = masked(address)
        self.name = name or self.uri
        self.realtime = realtime
        self.state = CameraState.OPENING
        self.reason = ""
        self.corrupt = 0
        self._source, self._kind, self._address = source, kind, address
        self._named, self._loop = bool(name), loop
        self._reconnect, self._timeout_s = reconnect, timeout_s
        self._in_use = threading.Lock()  # held around every call on the source
        self._closing = threading.Event()
        self._position = 0  # frames taken, broken ones included, over all passes and reconnections
        self._pass_began = 0  # the position at which the current pass or connection began
        self._good_in_pass = 0
        self._rewound = False  # rather than opened again, for this pass
        self._last_fault = "no frames"
        self._failures = 0  # reconnections since the last frame
        self._clock_zero: float | None = None

    def __repr__(self) -> str:
        return f"<Camera {self.name!r} {self.state.value}>"

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frames(self) -> Iterator[Frame]:
        """Every frame that is left, in order, once; a camera that has ended gives none.

        Raises:
            CameraError: no readable frame in a recording, or a live source that did not come back.
        """
        while (frame := self.read()) is not None:
            yield frame

    def read(self, *, paced: bool | None = None) -> Frame | None:
        """The next frame, its pixels owned by the caller; None at the end. Waits while a live source is lost.

        Args:
            paced: wait until a recording's own clock has reached the frame; by default as ``realtime`` says.

        Raises:
            CameraError: as in ``frames``.
        """
        paced = self.realtime is True if paced is None else paced
        try:
            return self._next(paced)
        except CameraError as error:
            self._end(str(error))
            raise
        finally:
            if self._closing.is_set():  # close() may have given up waiting for a grab that blocked
                self.state = CameraState.CLOSED
                self._release()

    def close(self) -> None:
        """Release the source; may be called again, and from another thread, where it ends a running read.

        Returns within ``timeout_s`` + 1 s: a grab that blocks longer has its own thread release the source.
        """
        self._closing.set()
        self.reason = self.reason or "closed"
        self.state = CameraState.CLOSED
        self._release(wait_s=self._timeout_s + 1.0)

    def _release(self, wait_s: float = -1.0) -> None:
        if self._in_use.acquire(timeout=wait_s):
            try:
                self._source.close()
            finally:
                self._in_use.release()

    def _become(self, state: CameraState) -> None:
        if not self._closing.is_set():
            self.state = state

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._become(CameraState.ENDED)
        self._release()

    def _next(self, paced: bool) -> Frame | None:
        while self.state not in (CameraState.ENDED, CameraState.CLOSED):
            if paced:
                self._await_turn()
            with self._in_use:
                grabbed = self._grab()
                frame = self._decode(time.monotonic()) if grabbed else None
            if frame is not None:
                return frame
            if not grabbed and not self._closing.is_set():
                self._recover()
        return None

    def _await_turn(self) -> None:
        if self._source.fps == 0:
            return
        due_s = self._position / self._source.fps
        if self._clock_zero is None:
            self._clock_zero = time.monotonic() - due_s
        self._closing.wait(max(0.0, self._clock_zero + due_s - time.monotonic()))

    def _grab(self) -> bool:
        """Take the next frame that can be taken, counting the broken ones before it."""
        give_up = time.monotonic() + GRAB_PATIENCE_S
        for broken in range(GRAB_ATTEMPTS):
            if self._closing.is_set():
                return False
            if self._source.grab():
                self.corrupt += broken
                self._position += broken
                return True
            if time.monotonic() > give_up:
                break
        return False

    def _decode(self, captured_at: float) -> Frame | None:
        index = self._position
        self._position += 1
        try:
            pixels = self._source.retrieve()
        except FrameError as error:
            self.corrupt += 1
            self._last_fault = str(error).rstrip(".")
            log.debug("camera %s: frame %d skipped: %s", self.name, index, error)
            return None
        self._good_in_pass += 1
        self._failures = 0
        if self.state is CameraState.LOST:
            log.warning("camera %s is back", self.name)
        self._become(CameraState.RUNNING)
        return Frame(pixels, captured_at, index, self._source_name())

    def _source_name(self) -> str:
        return self.name if self._named else self._source.current or self.name

    def _recover(self) -> None:
        """After the last grab failed for good: the next pass, the end, or another attempt to connect."""
        with self._in_use:
            at_end = self._source.at_end()
        if not at_end:
            self._try_again()
            return
        if self._rewound and self._good_in_pass == 0:  # it claims to seek, and cannot
            self._reopen()
            return
        self._check_pass()
        if self._loop:
            self._start_over()
        else:
            self._end("end of file")

    def _check_pass(self) -> None:
        if self._good_in_pass == 0:
            raise self._kind.fault(self._address, f"no readable frame ({self._last_fault})")
        taken = self._position - self._pass_began
        first_pass = self._pass_began == 0  # the others would only say it again
        if first_pass and taken + FEW_FRAMES < self._source.length:
            log.warning(
                "camera %s ended after %d of the %d frames it announced: the file is damaged or cut short",
                self.name,
                taken,
                self._source.length,
            )

    def _start_over(self) -> None:
        with self._in_use:
            self._rewound = self._source.rewind()
        if self._rewound:
            self._pass_began, self._good_in_pass = self._position, 0
        else:
            self._reopen()

    def _reopen(self) -> None:
        self._rewound = False
        self._pass_began, self._good_in_pass = self._position, 0
        try:
            with self._in_use:
                self._source.close()
                self._source.open()
        except OpenFailed as failure:
            raise self._kind.fault(self._address, failure.got, failure.do) from None

    def _try_again(self) -> None:
        """One wait and one attempt; the caller's loop makes the next."""
        if self.state is not CameraState.LOST:
            log.warning("camera %s is lost, reconnecting", self.name)
        self._become(CameraState.LOST)
        if self._failures == self._reconnect.attempts:
            raise self._kind.fault(self._address, f"a lost connection and {self._failures} failed attempts")
        with self._in_use:
            self._source.close()
        if self._closing.wait(self._reconnect.wait_s(self._failures)):
            return
        self._failures += 1
        try:
            self._reopen()
        except CameraError as error:
            log.info("%s", error)
