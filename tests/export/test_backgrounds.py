"""Photographs and rooms: nothing of a package is on both sides, and a file that went missing is named."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.export.data import backgrounds as module
from edge_ravlm.export.data.backgrounds import (
    PHOTO_PACKAGES,
    TEXTURE_PACKAGES,
    pattern,
    photo_files,
    photographs,
    room,
    rooms,
    texture_files,
)
from edge_ravlm.export.data.packages import packages

pytestmark = pytest.mark.export

TEXTURES = "com/eteks/sweethome3d/io/resources/textures"


def pat(pixels: np.ndarray, version: int = 1, magic: bytes = b"GPAT") -> bytes:
    height, width, depth = pixels.shape
    return struct.pack(">5I4s", 29, version, width, height, depth, magic) + b"name\0" + pixels.tobytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages of the real layouts with a picture or two each."""
    photos = {
        "mate-backgrounds": ("Aqua", "usr/share/backgrounds/mate/nature/Aqua.jpg"),
        "lomiri-wallpapers": ("Dune", "usr/share/backgrounds/Dune.jpg"),
        "plasma-wallpapers": ("Path", "usr/share/wallpapers/Path/contents/images/2560x1600.jpg"),
        "opencv-doc": ("graf1 home", "usr/share/doc/opencv-doc/examples/data/home.jpg"),
    }
    for tone, (package, (_, path)) in enumerate(photos.items()):
        (tmp_path / package / path).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / package / path), np.full((1500, 2000, 3), 10 + 40 * tone, np.uint8))
    small = tmp_path / "plasma-wallpapers/usr/share/wallpapers/Path/contents/screenshot.jpg"
    cv2.imwrite(str(small), np.full((5, 5, 3), 255, np.uint8))
    folder = tmp_path / "opencv-doc/usr/share/doc/opencv-doc/examples"
    cv2.imwrite(str(folder / "data/graf1.png"), np.full((50, 60, 3), 170, np.uint8))
    cv2.imwrite(str(folder / "home.png"), np.full((5, 5, 3), 255, np.uint8))  # another picture of that name
    (tmp_path / "sweethome3d/usr/share/sweethome3d").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "sweethome3d/usr/share/sweethome3d/sweethome3d.jar", "w") as jar:
        for name in ("beigeTile", "roughcast"):
            packed = cv2.imencode(".jpg", np.full((20, 30, 3), 120, np.uint8))[1]
            jar.writestr(f"{TEXTURES}/{name}.jpg", packed.tobytes())
    (tmp_path / "gimp-data/patterns").mkdir(parents=True)
    for name in ("slate", "brick"):
        (tmp_path / f"gimp-data/patterns/{name}.pat").write_bytes(pat(np.full((9, 9, 3), 60, np.uint8)))
    monkeypatch.setattr(module, "fetch", lambda name: tmp_path / name)
    monkeypatch.setattr(module, "_PHOTOS", {package: names for package, (names, _) in photos.items()})
    monkeypatch.setattr(module, "_FLOORS", {"train": "beigeTile", "held_out": "slate"})
    monkeypatch.setattr(module, "_WALLS", {"train": "roughcast", "held_out": "brick"})
    return tmp_path


def test_no_package_is_on_both_sides() -> None:
    train, held_out = ({*PHOTO_PACKAGES[half], TEXTURE_PACKAGES[half]} for half in ("train", "held_out"))
    assert not train & held_out
    assert not {packages()[name].package for name in train} & {packages()[name].package for name in held_out}


def test_photographs_come_from_their_half(cache: Path) -> None:
    assert [round(float(photo.mean())) for photo in photographs("train")] == [10, 50, 90]
    assert [round(float(photo.mean())) for photo in photographs("held_out")] == [170, 130]
    assert max(photographs("train")[0].shape) == 1000


def test_rooms_are_always_the_same(cache: Path) -> None:
    for half in ("train", "held_out"):
        first, again = rooms(half, 3), rooms(half, 3)
        assert [view.shape for view in first] == [(640, 800, 3)] * 3
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first[0], first[1])
    assert list(texture_files("train")) == ["beigeTile", "roughcast"]


def test_a_room_has_its_wall_above_its_floor() -> None:
    wall, floor = (np.full((30, 40, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    view = room(wall, floor, np.random.default_rng(0))
    assert view[:200, :, 0].min() > 60
    assert view[:200, :, 2].max() == 0
    assert view[-100:, :, 2].min() > 60
    assert view[-100:, :, 0].max() == 0


def test_what_is_missing_is_named(cache: Path) -> None:
    (cache / "mate-backgrounds/usr/share/backgrounds/mate/nature/Aqua.jpg").unlink()
    with pytest.raises(DataError, match="package 'mate-backgrounds': expected 'Aqua' in it"):
        photo_files("train")
    (cache / "gimp-data/patterns/brick.pat").unlink()
    with pytest.raises(DataError, match="package 'gimp-data': expected 'brick' in it"):
        rooms("held_out")
    (cache / "sweethome3d/usr/share/sweethome3d/sweethome3d.jar").write_bytes(b"no zip")
    with pytest.raises(DataError, match="expected a zip"):
        rooms("train")
    with pytest.raises(DataError, match="expected train or held_out, got 'test'"):
        photographs("test")  # type: ignore[arg-type]


def test_a_pattern_is_read() -> None:
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(pattern(pat(pixels)), pixels[..., 2::-1])
    np.testing.assert_array_equal(pattern(pat(pixels[..., :3])), pixels[..., 2::-1])
    grey = pixels[..., :1]
    np.testing.assert_array_equal(pattern(pat(grey)), grey.repeat(3, axis=2))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GPAT",
        pat(np.zeros((2, 3, 3), np.uint8))[:-1],
        pat(np.zeros((2, 3, 2), np.uint8)),
        pat(np.zeros((2, 3, 3), np.uint8), version=2),
        pat(np.zeros((2, 3, 3), np.uint8), magic=b"PNG "),
    ],
)
def test_what_is_no_pattern_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="expected a GIMP pattern of version 1"):
        pattern(content)
