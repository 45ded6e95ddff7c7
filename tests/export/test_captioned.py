"""Cut-outs with words, from packages as their authors pack them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.captioned import LONGEST, PACKAGES, SOURCES, captioned
from edge_ravlm.export.data.packages import packages
from edge_ravlm.export.data.qt_resources import read_resources

pytestmark = pytest.mark.export


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    return tmp_path


def png(height: int = 60, width: int = 60) -> bytes:
    """A red disc on nothing."""
    picture = np.zeros((height, width, 4), np.uint8)
    cv2.circle(picture, (width // 2, height // 2), min(height, width) // 3, (0, 0, 255, 255), -1)
    return bytes(cv2.imencode(".png", picture)[1])


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    """A Qt resource archive of version 1 with one folder."""
    names, data, places = b"", b"", []
    for name in (folder, *files):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", places[0], 2, len(files), 2)
    for place, (name, content) in zip(places[1:], files.items(), strict=True):
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if name.endswith(".png") else content
        nodes += struct.pack(">IHHHI", place, name.endswith(".png"), 0, 1, len(data))
        data += struct.pack(">I", len(packed)) + packed
    start = 20
    header = struct.pack(">4s4I", b"qres", 1, start, start + len(nodes), start + len(nodes) + len(data))
    return header + nodes + data + names


def test_every_source_says_from_which_packages_it_is() -> None:
    assert set(SOURCES) == set(PACKAGES)
    assert {name for names in PACKAGES.values() for name in names} <= set(packages())


def test_an_archive_of_qt_gives_its_files_compressed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.rcc").write_bytes(archive("words", {"fox.png": b"fox" * 99, "a.txt": b"text"}))
    found = read_resources(tmp_path / "a.rcc")
    assert found == [(PurePosixPath("words/fox.png"), b"fox" * 99), (PurePosixPath("words/a.txt"), b"text")]


@pytest.mark.parametrize("damage", [b"", b"none at all", "cut", "loop"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: bytes | str) -> None:
    whole = archive("words", {"fox.png": b"fox" * 99})
    broken = {"cut": whole[:70], "loop": whole[:30] + struct.pack(">I", 0) + whole[34:]}
    (tmp_path / "a.rcc").write_bytes(damage if isinstance(damage, bytes) else broken[damage])
    with pytest.raises(DataError, match=r"a\.rcc"):
        read_resources(tmp_path / "a.rcc")


def test_pictures_of_gcompris_are_called_what_their_files_are(cache: Path) -> None:
    folder = cache / "gcompris/usr/share/gcompris-qt/rcc"
    folder.mkdir(parents=True)
    empty = archive("nothing", {})
    for activity in ("categorization", "erase", "explore_farm_animals", "explore_monuments", "explore_world_animals"):
        (folder / f"{activity}.rcc").write_bytes(empty)
    for activity in ("explore_world_music", "instruments"):
        (folder / f"{activity}.rcc").write_bytes(empty)
    (folder / "lang.rcc").write_bytes(archive("words_sample", {"redFox_2.png": png(), "list.txt": b"no picture"}))
    (fox,) = captioned(["gcompris"])
    assert fox.texts == ("red fox",)
    assert fox.pixels.shape == (41, 41, 4)  # cropped


def test_emoji_come_with_names_and_keywords_and_flags_stay_out(cache: Path) -> None:
    names, pictures = cache / "emojibase/package/en", cache / "fluent-emoji/package/assets"
    names.mkdir(parents=True)
    pictures.mkdir(parents=True)
    listed = [
        {"label": "fox", "hexcode": "1F98A", "tags": ["animal", "face"], "group": 3},
        {"label": "flag: Belize", "hexcode": "1F1E7", "tags": []},
        {"label": "without a picture", "hexcode": "1F000"},
    ]
    (names / "data.json").write_text(json.dumps(listed))
    for name in ("1f98a", "1f1e7"):
        (pictures / f"{name}.webp").write_bytes(png(1000, 1200))
    (fox,) = captioned(["emoji"])
    assert fox.texts == ("fox", "animal", "face")
    assert max(fox.pixels.shape[:2]) == LONGEST
    assert fox.pixels[200, 200].tolist() == [0, 0, 255, 255]


def test_clipart_has_title_and_keywords_and_what_shows_nothing_stays_out(cache: Path) -> None:
    folder = cache / "openclipart/usr/share/openclipart/svg/animals"
    folder.mkdir(parents=True)
    words = "<dc:title>Red_Fox 01</dc:title><rdf:li>mammal</rdf:li><rdf:li>0x85</rdf:li>"
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="d" xmlns:rdf="r" viewBox="0 0 9 9">{}{}</svg>'
    circle = '<circle cx="4" cy="4" r="3" fill="red"/>'
    (folder / "a.svg").write_text(drawing.format(words, circle))
    (folder / "empty.svg").write_text(drawing.format(words, ""))
    (folder / "icon.svg").write_text(drawing.format("<dc:title>an icon</dc:title>", circle))
    (folder / "broken.svg").write_text("<dc:title>no drawing</dc:title>")
    (fox,) = captioned(["clipart"])
    assert fox.texts == ("red fox", "mammal")
