"""Which kind of source an address names: a table, read from the top."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_ravlm.errors import CameraError, UsageError
from edge_ravlm.frames import IMAGE_SUFFIXES
from edge_ravlm.runtime.camera.gstreamer import gstreamer
from edge_ravlm.runtime.camera.sources import FileSource, ImagesSource, Source, UrlSource, WebcamSource


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One row of the table.

    Attributes:
        name: the kind, in one word.
        fits: whether an address is of this kind.
        make: the source for an address and a timeout in seconds, not yet opened; may raise OpenFailed.
        expected: what should have been at the address (for error messages).
        do: what to do when it is not.
    """

    name: str
    fits: Callable[[str], bool]
    make: Callable[[str, float], Source]
    expected: str
    do: str

    def fault(self, address: str, got: str, do: str = "") -> CameraError:
        """The error for an address of this kind, with passwords masked."""
        return CameraError(
            f"camera '{masked(address)}'",
            expected=self.expected,
            got=masked(got).rstrip("."),
            do=do or self.do,
        )


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda address: compiled.match(address) is not None


KINDS = (
    SourceKind(
        "gstreamer",
        _matches("gst:"),
        gstreamer,
        expected="a GStreamer pipeline that gives video",
        do="try it with gst-launch-1.0 first",
    ),
    SourceKind(
        "rtsp",
        _matches("rtsps?://"),
        UrlSource,
        expected="an RTSP stream",
        do="check the address, user and password, and that the camera can be reached from here",
    ),
    SourceKind(
        "http",
        _matches("https?://"),
        UrlSource,
        expected="video over HTTP",
        do="check the address, and that the camera can be reached from here",
    ),
    SourceKind(
        "webcam",
        _matches(r"(/dev/video)?[0-9]+$"),
        WebcamSource,
        expected="a webcam",
        do="list them with ls /dev/video* and name one that no other program is using",
    ),
    SourceKind(
        "folder",
        lambda address: Path(address).is_dir(),
        ImagesSource,
        expected=f"a folder with images ({', '.join(sorted(IMAGE_SUFFIXES))})",
        do="check the path",
    ),
    SourceKind(
        "image",
        lambda address: Path(address).suffix.lower() in IMAGE_SUFFIXES,
        ImagesSource,
        expected="a readable image",
        do="check the path",
    ),
    SourceKind(
        "file",
        lambda address: True,  # noqa: ARG005 (whatever is left is a file)
        FileSource,
        expected="a video file",
        do="check the path, and that the file is complete",
    ),
)


def describe(uri: str | int | Path) -> SourceKind:
    """The kind of source that an address names; only the folder's row looks at the disk.

    A Path is never a webcam index: a file called ``0`` is ``Path("0")`` or ``./0``.
    """
    address = as_address(uri)
    return next(kind for kind in KINDS if kind.fits(address))


def as_address(uri: str | int | Path) -> str:
    """The text form of an address, in which a relative Path cannot be taken for anything else."""
    relative = isinstance(uri, Path) and not uri.is_absolute()
    address = f"./{uri}" if relative else str(uri).strip()
    if not address:
        raise UsageError(
            "camera",
            expected="an address",
            got="an empty text",
            do="name a file, folder, webcam index or URL",
        )
    return address


_USERINFO = re.compile(r"(?P<user>://[^:/\s]*):(?:[^/\s]*|(?![0-9]+/)\S*)@")
_SECRET = "pass?|passwd|password|pwd|pw|secret|token|key|auth|authorization|sig|signature|session|access_?code"
_NAMED = re.compile(
    rf"(?P<key>\b[\w-]*(?:{_SECRET})[0-9]*(?:\s*=|%3d)\s*)(?:\"[^\"]*\"|'[^']*'|(?:(?!&[\w-]+=)[^\s#])+)", re.IGNORECASE
)
"""An & alone is part of a secret; the next key of an address is not."""


def masked(text: str) -> str:
    """The text with its passwords (``user:…@host``, ``password=…``, ``token=…``) replaced by ``***``."""
    return _NAMED.sub(r"\g<key>***", _USERINFO.sub(r"\g<user>:***@", text))
