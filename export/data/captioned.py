"""Cut-outs with words: what the image encoder's meaning head learns from (``edge_ravlm.export.align``).

Nothing here is held out of anything but the stamps and the objects of a home, whose training parts alone are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import cv2
import msgspec
import numpy as np

from edge_ravlm.errors import DataError, needs_extra
from edge_ravlm.export.data import datasets, scenes
from edge_ravlm.export.data.packages import fetch
from edge_ravlm.export.data.resources import read_resources
from edge_ravlm.frames import Pixels

LONGEST = 400
"""Pixels of the longer side; encoders see less."""

_RENDERED = 256
_FLAGS = "flag"
_WORDS = 6
"""Texts of one picture that count; clip-art has dozens of keywords, the last ones far-fetched."""


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows.

    Attributes:
        pixels: uint8 [h, w, 4] BGRA, cropped to what is not transparent.
        texts: its caption, then further words for it.
    """

    pixels: Pixels
    texts: tuple[str, ...]


def stamps() -> Iterator[Captioned]:
    """The training half of Tux Paint's stamps that have a caption."""
    return (_captioned(stamp.pixels, [stamp.caption]) for stamp in scenes.stamps()[0] if stamp.caption)


def home() -> Iterator[Captioned]:
    """The training part of the objects of a home."""
    return (_captioned(piece.pixels, [piece.sentence]) for piece in datasets.home().train.things)


def emoji() -> Iterator[Captioned]:
    """Fluent emoji, rendered in three dimensions, with Unicode's names and keywords; no flags."""
    names, pictures = fetch("emojibase") / "package/en/data.json", fetch("fluent-emoji") / "package/assets"
    for one in msgspec.json.decode(names.read_bytes(), type=list[_Emoji]):
        file = pictures / f"{one.hexcode.lower()}.webp"
        if file.is_file() and not one.label.startswith(_FLAGS):
            yield _captioned(_decoded(file.read_bytes(), str(file)), [one.label, *one.tags])


def gcompris() -> Iterator[Captioned]:
    """Photographs and drawings of a collection for children; their files' names say what they show."""
    folder = fetch("gcompris") / "usr/share/gcompris-qt/rcc"
    for activity, part in _ACTIVITIES.items():
        for path, content in read_resources(folder / f"{activity}.rcc"):
            name = _spoken(path.stem)
            if part in path.parts and path.suffix in (".webp", ".png", ".jpg", ".svg") and len(name) > 1:
                topic = [path.parent.name] if path.parent.name not in {part, "others", "images"} else []
                pixels = _rendered(content.decode()) if path.suffix == ".svg" else _decoded(content, str(path))
                yield _captioned(pixels, [name, *topic])


def clipart() -> Iterator[Captioned]:
    """Drawings of the Open Clip Art Library with their titles and keywords; symbols, icons and games are left out."""
    folder = fetch("openclipart") / "usr/share/openclipart/svg"
    for path in sorted(folder.rglob("*.svg")):
        where = path.relative_to(folder)
        if where.parts[0] not in _TOPICS or path.is_symlink() or path.stat().st_size > _LARGEST or _DULL.search(str(where)):
            continue
        svg = path.read_text(encoding="utf-8", errors="ignore")
        title = _spoken(next(iter(re.findall(r"<dc:title[^>]*>([^<]*)", svg)), ""))
        words = [word.strip() for word in re.findall(r"<rdf:li>([^<]*)", svg)]
        if 3 <= len(title) <= 50 and not _NO_TITLE.search(title):
            try:
                pixels = _rendered(svg)
            except ValueError:  # what the renderer does not know, or nothing to see
                continue
            yield _captioned(pixels, [title, *(word for word in words if re.fullmatch(r"[a-z ]{3,}", word))])
