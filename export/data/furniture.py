"""Objects of a home: small renders with alpha, and what is known of each: name, room, size, maker and licence."""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import fetch
from edge_ravlm.frames import Pixels

PACKAGE = "sweethome3d-furniture"
"""Its name in ``packages.toml``."""

HELD_OUT = 0.15

_CATALOG = "PluginFurnitureCatalog.properties"
_LICENCES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
_LIBRARIES = frozenset({"Blend Swap", "SCPTS"})
"""Tags that tell where an object comes from, not what it is."""

_PLACES = {
    "Living room": "belong{s} in the living room",
    "Kitchen": "belong{s} in the kitchen",
    "Bedroom": "belong{s} in the bedroom",
    "Bathroom": "belong{s} in the bathroom",
    "Office": "belong{s} in the office",
    "Exterior": "belong{s} outdoors",
    "Doors and windows": "{is} built into a wall",
    "Lights": "give{s} light",
    "Vehicles": "{is} a vehicle",
}
_PROPER = "Apple Chevrolet Concept Ford French Japanese Osaka Peugeot Renault Rubik's Seat Siamese Winchester Yamaha"
"""First words that are capital inside of a sentence too."""

_CORRECTED = {
    "Barnum": "Canopy",
    "Bended coconut tree": "Bent coconut tree",
    "Bootie": "Ankle boots",
    "Flacon": "Perfume bottle",
    "Flipper": "Pinball machine",
    "Gaz water heater": "Gas water heater",
    "Hashtray": "Ashtray",
    "Letters box": "Letter box",
    "Little bank": "Little bench",
    "Mocassin": "Moccasin",
    "Oil servers": "Oil bottles",
    "Penbox": "Pen holder",
    "Puff": "Beanbag",
    "Short": "Shorts",
    "Socket": "Sock",
    "Teck chair": "Teak chair",
    "Toilets unit": "Toilet",
    "Trunck": "Trunk",
    "Wood bank": "Wooden bench",
}
"""Names that are no English word for what the render shows; the catalogues were made in France."""

_SINGULAR_S = frozenset({"bus", "cactus", "cypress", "ficus", "focus", "tennis"})


@dataclass(frozen=True)
class Piece:
    """One object.

    Attributes:
        name: its unique name in the catalogue, ``Scopia#stool3``.
        pixels: uint8 [h, w, 4] BGRA, at most 128 pixels a side.
        title: what people call it, ``kitchen knife``; several pieces share one.
        category: where the catalogue files it, ``Kitchen``.
        tags: further words.
        width_cm: left to right, as ``depth_cm`` front to back and ``height_cm`` in the real thing's centimetres.
        creator: who modelled it.
        licence: SPDX name of the render's licence.
    """

    name: str
    pixels: Pixels
    title: str
    category: str
    tags: tuple[str, ...]
    width_cm: float
    depth_cm: float
    height_cm: float
    creator: str
    licence: str

    @property
    def sentence(self) -> str:
        """What it is: ``a kitchen knife``."""
        if _plural(self.title):
            return self.title
        return f"{'an' if re.match(r'[aeioAEIO]|um|up|SUV|MP3', self.title) else 'a'} {self.title}"

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences that are true of it: three sizes, and its place where the category tells one."""
        many = _plural(self.title)
        subject, verb = f"the {self.title}", "are" if many else "is"
        sizes = (("wide", self.width_cm), ("deep", self.depth_cm), ("high", self.height_cm))
        place = _PLACES.get(self.category, "").format(s="" if many else "s", **{"is": verb})
        return (
            *(f"{subject} {verb} {_cm(n)} cm {how}" for how, n in sizes),
            *([f"{subject} {place}"] if place else []),
        )


def files() -> list[Path]:
    """The libraries, each a zip (fetches the package)."""
    return sorted((fetch(PACKAGE) / "usr/share/sweethome3d/furniture").glob("*.sh3f"))


def furniture() -> list[Piece]:
    """All objects by name.

    Raises:
        DataError: a library that cannot be read, or an object without a picture, name or size.
    """
    found = [piece for path in files() for piece in read_library(path)]
    return sorted(found, key=lambda piece: piece.name)


def read_library(path: Path) -> list[Piece]:
    """The objects of one ``.sh3f`` file in the catalogue's order; raises DataError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            catalog = archive.read(_CATALOG).decode("latin-1")
            entries = _entries(catalog)
            return [_piece(entry, archive, _LICENCES.get(path.stem, "unknown")) for entry in entries]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(
            f"furniture library '{path}'",
            expected="a zip with a catalogue, and name, size and picture of each object",
            got=str(error) or type(error).__name__,
            do="fetch the package again",
        ) from None


def split(pieces: Iterable[Piece], *, held_out: float = HELD_OUT, seed: int = 0) -> tuple[list[Piece], list[Piece]]:
    """Objects to learn from and held-out ones, a share of ``held_out``; one title, numbers aside, is on one side."""
    groups: dict[str, list[Piece]] = defaultdict(list)
    for piece in sorted(pieces, key=lambda piece: piece.name):
        groups[family(piece.title)].append(piece)
    names = sorted(groups)
    wanted = held_out * sum(map(len, groups.values()))
    train: list[Piece] = []
    kept: list[Piece] = []
    for index in np.random.default_rng(seed).permutation(len(names)):
        group = groups[names[int(index)]]
        (kept if len(kept) + len(group) / 2 <= wanted else train).extend(group)
    return sorted(train, key=lambda piece: piece.name), sorted(kept, key=lambda piece: piece.name)


def family(title: str) -> str:
    """The title without numbers and types: ``sofa 2 seats`` and ``sofa 3 seats`` are variants of one object."""
    return " ".join(re.sub(r"[\d:°€]+|\btype [a-z]\b|\bsport\b", " ", title.lower()).split())


def _entries(catalog: str) -> list[dict[str, str]]:
    """Java properties ``key#number=value``, by number."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", catalog, re.MULTILINE):
        found[int(number)][key] = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), value.strip())
    return [found[number] for number in sorted(found)]


def _piece(entry: dict[str, str], archive: zipfile.ZipFile, licence: str) -> Piece:
    picture = cv2.imdecode(np.frombuffer(archive.read(entry["icon"].lstrip("/")), np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3:
        raise ValueError(f"no coloured picture in '{entry['icon']}'")
    if picture.shape[2] == 3:  # flat on the ground, and so without a border
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    x, y, width, height = cv2.boundingRect(np.asarray(picture[..., 3] > 0, np.uint8))
    tags = (tag.strip().lower() for tag in entry.get("tags", "").split(",") if tag.strip() not in _LIBRARIES)
    return Piece(
        name=entry["id"],
        pixels=np.ascontiguousarray(picture[y : y + height, x : x + width], np.uint8),
        title=_spoken(entry["name"]),
        category=entry["category"],
        tags=tuple(tag for tag in tags if tag),
        width_cm=float(entry["width"]),
        depth_cm=float(entry["depth"]),
        height_cm=float(entry["height"]),
        creator=entry["creator"],
        licence=licence,
    )


def _spoken(name: str) -> str:
    """As inside of a sentence: small at its start unless that is a proper name or, like ``TV``, an abbreviation."""
    name = re.sub(r" plug$", " outlet", _CORRECTED.get(name, name))
    name = re.sub(r" (\d+ (?:panes|zones|seats)|small panes)", r" with \1", name)
    name = re.sub(r" - (\w)", lambda found: f", {found[1].lower()}", name)
    first = name.split()[0]
    return name if first in _PROPER.split() or not first[1:].islower() else name[:1].lower() + name[1:]


def _plural(title: str) -> bool:
    head = re.split(r" with | on | under |,", title)[0].split()[-1].lower()
    return " and cutlery" in title or (head.endswith("s") and not head.endswith("ss") and head not in _SINGULAR_S)


def _cm(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}".removesuffix(".0")
