"""What a picture is, in this project: a checked uint8 BGR array, when it was captured, and which part of it matters."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.errors import FrameError, UsageError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: at three bytes a pixel they would not fit beside the models on a small device."""

MAX_FILE_BYTES = 500_000_000
"""Larger files are no pictures that could be used; beside pipes and devices, which would be waited for."""

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""How the names of files end that are taken for pictures, in small letters."""

_GIVE = "give a readable JPEG, PNG, BMP, TIFF or WebP file"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and the moment it was captured; equal to itself only.

    Attributes:
        pixels: uint8 [height, width, 3], BGR (OpenCV's order); grey and four channels are converted.
        captured_at: seconds on ``time.monotonic()``'s clock; deadlines count from here.
        index: position in its source, 0-based; -1 when it has none.
        source: the name of the camera or file it came from.
        recorded: whether it was read from a file: nobody waits for it yet, so deadlines count from the question.
    """

    pixels: Pixels
    captured_at: float = field(default_factory=time.monotonic)
    index: int = -1
    source: str = ""
    recorded: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", as_bgr(self.pixels))

    @classmethod
    def of(cls, picture: Frame | NDArray[Any]) -> Frame:
        """A frame from whatever the caller holds; raises FrameError if that is no picture."""
        return picture if isinstance(picture, Frame) else cls(picture)


@dataclass(frozen=True, slots=True)
class Region:
    """The part of the picture that a question is about.

    Attributes:
        points: polygon corners (x, y) in pixels; two points mean a box (opposite corners). Fractions, as detectors
            give them, are rounded.
        name: memories taught in a named region are compared with that region only.
    """

    points: tuple[tuple[int, int], ...]
    name: str = ""

    def __post_init__(self) -> None:
        try:
            points = tuple((round(x), round(y)) for x, y in self.points)
        except (TypeError, ValueError, OverflowError):  # no pairs, no numbers, or none that is finite
            points = ()
        (x0, y0), (x1, y1) = _corners(points)
        if len(points) < 2 or x1 <= x0 or y1 <= y0:
            raise UsageError(
                f"region '{self.name or 'unnamed'}'",
                expected="a box x0,y0,x1,y1 or a polygon of 3 or more points that encloses pixels",
                got=str(self.points),
                do="give the corners in pixels of the frame",
            )
        object.__setattr__(self, "points", points)

    @classmethod
    def box(cls, x0: int, y0: int, x1: int, y1: int, name: str = "") -> Region:
        """The half-open box x0 <= x < x1, y0 <= y < y1."""
        return cls(((x0, y0), (x1, y1)), name)

    @classmethod
    def parse(cls, text: str, name: str = "") -> Region:
        """From ``x0,y0,x1,y1`` or ``x,y x,y x,y …``, optionally ``name=`` in front."""
        head, _, body = text.rpartition("=")
        try:
            numbers = [int(n) for n in body.replace(",", " ").split()]
            points = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        except ValueError:
            raise UsageError(
                f"region '{text}'",
                expected="whole numbers x0,y0,x1,y1 or x,y x,y x,y …",
                got=f"'{body}'",
                do="write for instance --region 'gate=40,60,200,180'",
            ) from None
        return cls(points, head.strip() or name)

    def crop(self, pixels: Pixels) -> Pixels:
        """The region's bounding box, a view where the region is a box.

        Outside a polygon pixels become mid-grey (127), which the encoders normalise to about zero.
        """
        (x0, y0), (x1, y1) = _corners(self.points)
        height, width = pixels.shape[:2]
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise UsageError(
                f"region '{self.name or 'unnamed'}'",
                expected=f"corners inside the {width}x{height} frame",
                got=str(self.points),
                do="give the corners in pixels of this source's frames",
            )
        crop = pixels[y0:y1, x0:x1]
        return crop if len(self.points) == 2 else self._masked(crop, (x0, y0))

    def _masked(self, crop: Pixels, origin: tuple[int, int]) -> Pixels:
        inside = np.zeros(crop.shape[:2], np.uint8)
        cv2.fillPoly(inside, [np.asarray(self.points, np.int32) - np.asarray(origin, np.int32)], 1)
        return np.where(inside[..., None].astype(bool), crop, np.uint8(127))


def _corners(points: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the box around them; an empty one where there are none."""
    xs, ys = [x for x, _ in points] or [0], [y for _, y in points] or [0]
    return (min(xs), min(ys)), (max(xs), max(ys))


def as_bgr(picture: NDArray[Any]) -> Pixels:
    """Check a picture and bring it to uint8 [height, width, 3] BGR; grey is repeated, alpha dropped.

    Raises:
        FrameError: no pixels, a dtype other than uint8, a shape that is no picture, or more than MAX_PIXELS.
    """
    what = "frame"
    if not isinstance(picture, np.ndarray) or picture.ndim not in (2, 3):
        got = f"shape {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise FrameError(
            what, expected="an array [height, width, 3]", got=got, do="pass one picture as OpenCV reads it"
        )
    if picture.dtype != np.uint8:
        raise FrameError(
            what,
            expected="8 bits a channel (uint8)",
            got=str(picture.dtype),
            do="scale it first, e.g. (frame / 256).astype('uint8') for 16-bit pictures",
        )
    height, width = picture.shape[:2]
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if height == 0 or width == 0 or channels not in (1, 3, 4):
        raise FrameError(
            what,
            expected="at least one pixel of 1, 3 or 4 channels",
            got=f"shape {picture.shape}",
            do="check the camera or file it came from",
        )
    if height * width > MAX_PIXELS:
        raise FrameError(
            what,
            expected=f"at most {MAX_PIXELS // 1_000_000} megapixels",
            got=f"{width}x{height}",
            do="downscale or crop it first",
        )
    if channels == 3:
        return picture
    code = cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR
    return np.asarray(cv2.cvtColor(picture, code), np.uint8)


def read_image(path: str | Path) -> Frame:
    """Read an image file; raises FrameError with the path if it is missing or no picture."""
    what, do = f"image '{path}'", _GIVE
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            got = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "a pipe or a device"
            got = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else got
            raise FrameError(what, expected=f"a file of at most {MAX_FILE_BYTES // 1_000_000} MB", got=got, do=do)
        data = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        got = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FrameError(what, expected="a readable file", got=got, do=do) from None
    return decode_image(data, what, source=str(path), do=do)


def decode_image(data: NDArray[np.uint8], what: str, *, source: str = "", do: str = _GIVE) -> Frame:
    """A picture from a file's bytes, uint8 [n].

    Args:
        data: a JPEG, PNG, BMP, TIFF or WebP.
        what: it is called in errors.
        source: the frame's.
        do: what to do about an error.

    Raises:
        FrameError: no picture, or one that is too large.
    """
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):  # from its header; what the commands let through is as much as MAX_PIXELS
            most = f"at most {MAX_PIXELS // 1_000_000} megapixels"
            raise FrameError(what, expected=most, got="more", do="downscale or crop it first") from None
        pixels = None
    if pixels is None:
        raise FrameError(what, expected="a picture", got=f"{data.size} bytes OpenCV cannot decode", do=do)
    try:
        return Frame(np.asarray(pixels, np.uint8), source=source, recorded=True)
    except FrameError as error:
        raise FrameError(what, expected=error.expected, got=error.got, do=error.do) from None
