"""Where frames come from: one class per kind, each with ``open``, ``grab``, ``retrieve`` and ``close``.

A source neither retries nor waits nor words errors for users; the reader does that for all of them alike.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np

from edge_ravlm.errors import FrameError
from edge_ravlm.frames import IMAGE_SUFFIXES, Pixels, as_bgr, read_image

STILLS_FPS = 10.0
"""The pace at which a folder of images, which has none of its own, stands in for a camera."""
USUAL_FPS = 25.0
"""The pace of a recording whose header names none that is possible."""
JPEG_CODECS = frozenset({b"MJPG", b"mjpg", b"JPEG", b"jpeg"})
PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}


class OpenFailed(Exception):
    """A source that cannot be opened.

    Args:
        got: what was found instead of it.
        do: the next step, where it differs from the usual one for this kind.
    """

    def __init__(self, got: str, do: str = "") -> None:
        super().__init__(got)
        self.got, self.do = got, do


class Source(Protocol):
    """What the reader asks of a source.

    Attributes:
        fps: a recording's frames per second; 0 for a source with a clock of its own.
        length: frames that a recording says it has; 0 when that is unknown.
        current: the file that the grabbed frame came from, where each frame is a file of its own.
    """

    fps: float
    length: int
    current: str

    def open(self) -> None:
        """Open, or open again from the start; raises OpenFailed."""

    def rewind(self) -> bool:
        """Go back to the first frame; False where only opening again does that."""

    def grab(self) -> bool:
        """Take the next frame, undecoded as far as possible; False when there is none (or it is broken)."""

    def retrieve(self) -> Pixels:
        """The grabbed frame as BGR, owned by the caller; raises FrameError if it is broken."""

    def at_end(self) -> bool:
        """Whether failing grabs mean that all frames have been read, rather than a lost connection."""

    def close(self) -> None:
        """Release everything; may be called again, and before ``open``."""


class ImagesSource:
    """One image, or the images of a folder in natural order (``img2`` before ``img10``)."""

    def __init__(self, address: str, timeout_s: float) -> None:  # noqa: ARG002 (sources are made alike)
        self.fps, self.length, self.current = STILLS_FPS, 0, ""
        self._path = Path(address)
        self._waiting: list[Path] = []

    def open(self) -> None:
        """List the images; their content is read frame by frame."""
        try:
            files = list(self._path.iterdir()) if self._path.is_dir() else [self._path]
        except OSError as error:
            raise OpenFailed((error.strerror or str(error)).lower()) from None
        images = sorted((f for f in files if _is_image(f)), key=_natural)
        if not images:
            raise OpenFailed(_lacks_images(self._path, len(files)))
        self.length = len(images)
        self._waiting = images[::-1]

    def rewind(self) -> bool:
        """The folder may hold other files by now."""
        return False

    def grab(self) -> bool:
        """Step to the next file."""
        if not self._waiting:
            return False
        self.current = str(self._waiting.pop())
        return True

    def retrieve(self) -> Pixels:
        """Read the file."""
        return read_image(self.current).pixels

    def at_end(self) -> bool:
        """Files have an end and nothing else."""
        return True

    def close(self) -> None:
        """Forget the files that were not read."""
        self._waiting = []


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural(path: Path) -> list[str | int]:
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _lacks_images(path: Path, files: int) -> str:
    if not path.is_dir():
        return "no such file"
    return f"{files} file(s), none of them an image" if files else "an empty folder"


class Buffers:
    """Pictures that are written over once nobody holds them, or a part of them, any more.

    A camera then asks the system for no memory with every frame. Parts of an array, and whatever else looks into its
    memory, hold the array itself, so the number of its references tells.
    """

    def __init__(self) -> None:
        self._pictures: list[Pixels] = []

    def free(self) -> Pixels | None:
        """One that may be written over; None if there is none."""
        every = range(len(self._pictures))
        return next((self._pictures[n] for n in every if sys.getrefcount(self._pictures[n]) == _ALONE), None)

    def keep(self, picture: Pixels) -> None:
        """For later frames of this size; those of another size are not wanted any more."""
        if not any(picture is one for one in self._pictures):
            alike = [one for one in self._pictures if one.shape == picture.shape]
            self._pictures = [*alike[1 - _MOST_BUFFERS :], picture]


_MOST_BUFFERS = 6
"""Of a camera: one is being written, the newest waits, one or two are looked at; the rest is for who is slow."""

_ALONE = 2
"""References of what is in a list and nowhere else: the list's, and that of asking."""


class VideoSource:
    """What the sources behind ``cv2.VideoCapture`` share; each says how to connect and why that failed."""

    live = True

    def __init__(self, address: str, timeout_s: float) -> None:
        self.fps, self.length, self.current = 0.0, 0, ""
        self._address, self._timeout_s = address, timeout_s
        self._capture: cv2.VideoCapture | None = None
        self._buffers = Buffers()
        self._jpegs = False
        self._began = 0.0  # when the last attempt to connect began

    def _connect(self) -> cv2.VideoCapture:
        """Begin to fetch; each kind of source does it in its own way."""
        raise NotImplementedError

    def _why(self) -> str:
        """What most likely keeps this kind of source from opening."""
        raise NotImplementedError

    def _by_ffmpeg(self, address: str) -> cv2.VideoCapture:
        """Where frames are JPEGs, FFmpeg only fetches them.

        Its own decoding would keep the first frame's size for good (OpenCV issue 27116) and waste time on
        frames that are broken; what is not JPEG has to put up with the former.
        """
        limit_ms = max(1, round(self._timeout_s * 1000))
        options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
        if self.live:  # each decoding thread would hold one frame back, which then looks newer than it is
            options += [cv2.CAP_PROP_N_THREADS, 1]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, options)
        codec = (int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF).to_bytes(4, "little")
        self._jpegs = codec in JPEG_CODECS and capture.set(cv2.CAP_PROP_FORMAT, -1)
        return capture

    def open(self) -> None:
        """Connect; an address that turns out to hold a recording (a file behind a URL) is treated as one."""
        _silence()
        self._began = time.monotonic()
        self._capture = self._connect()
        if not self._capture.isOpened():
            why = self._why()
            self.close()
            raise OpenFailed(why)
        # Streams report nonsense here, -9.2e18 for instance.
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        recorded = self.length > 0 or not self.live
        self.fps = (fps if 0 < fps <= 1000 else USUAL_FPS) if recorded else 0.0

    def rewind(self) -> bool:
        """Seek, which a file allows and a stream does not; decoder and buffers stay."""
        return self._capture is not None and not self.live and self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)

    def grab(self) -> bool:
        """One attempt; blocks for at most the timeout where the backend knows timeouts."""
        return self._capture is not None and self._capture.grab()

    def retrieve(self) -> Pixels:
        """Decode and convert; FFmpeg has decoded in ``grab`` already, except JPEGs."""
        try:
            into = self._buffers.free()
            ok, picture = self._capture.retrieve(None if self._jpegs else into) if self._capture else (False, None)
            if ok and self._jpegs and picture is not None:
                picture = cv2.imdecode(picture, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error as error:
            raise _undecodable(error.err) from None
        if not ok or picture is None:
            raise _undecodable("nothing")
        pixels = as_bgr(np.asarray(picture))
        if self._jpegs and into is not None and into.shape == pixels.shape:
            # OpenCV decodes into memory of its own; what is freed at once leaves no holes that grow.
            np.copyto(into, pixels)
            return into
        if pixels is picture:
            self._buffers.keep(pixels)
        return pixels

    def at_end(self) -> bool:
        """A recording ends; a stream gets lost."""
        return self.fps > 0

    def close(self) -> None:
        """Release the capture."""
        if self._capture is not None:
            self._capture.release()
        self._capture = None


def _undecodable(got: str) -> FrameError:
    return FrameError("frame", expected="a picture", got=got, do="check the camera or file it came from")


def _silence() -> None:
    """Keep OpenCV's and FFmpeg's own lines off stderr, unless the user asked for them by environment.

    OpenCV looks for FFmpeg's level once a process: too late where others have opened a video before.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, OpenCV 5
        set_level(0)


class FileSource(VideoSource):
    """A video file."""

    live = False

    def _connect(self) -> cv2.VideoCapture:
        # An absolute path, because FFmpeg takes what stands before a colon for a protocol.
        path = str(Path(self._address).absolute())
        try:
            path.encode()
        except UnicodeEncodeError:  # OpenCV would take the process down
            raise OpenFailed("a name that is not UTF-8", do="rename it") from None
        return self._by_ffmpeg(path)

    def _why(self) -> str:
        try:
            with Path(self._address).open("rb") as file:
                return f"{file.seek(0, os.SEEK_END)} bytes that are no complete video file"
        except OSError as error:
            return (error.strerror or str(error)).lower()


class WebcamSource(VideoSource):
    """A webcam by index or device path (Video4Linux)."""

    def _connect(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self._number(), cv2.CAP_V4L2)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # else up to four stale frames wait in the driver
        return capture

    def _number(self) -> int:
        return int(self._address.removeprefix("/dev/video"))

    def _why(self) -> str:
        device = Path(f"/dev/video{self._number()}")
        if not device.exists():
            return f"no device {device}"
        return "a device that is busy or no camera" if os.access(device, os.R_OK | os.W_OK) else "no permission"


class UrlSource(VideoSource):
    """A stream or file behind rtsp://, rtsps://, http:// or https://."""

    def _connect(self) -> cv2.VideoCapture:
        return self._by_ffmpeg(self._address)

    def _why(self) -> str:
        """OpenCV does not say why, so look at the time it took and ask the server's port once more."""
        if time.monotonic() - self._began >= 0.9 * self._timeout_s:
            return f"no answer within {self._timeout_s:g} s"
        try:
            url = urlsplit(self._address)
            place = url.hostname or "", url.port or PORTS[url.scheme.lower()]
            socket.create_connection(place, timeout=min(1.0, self._timeout_s)).close()
        except OSError as error:
            return (error.strerror or str(error)).lower()
        except ValueError:  # its text would quote the address
            return "an address that is no URL"
        return "a server that has none there, or not for this user"
