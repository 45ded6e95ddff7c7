"""Composed scenes: what calibrates a model must not judge it, and the same seed makes the same pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.export.data import scenes
from edge_ravlm.export.data.packages import cached, packages
from edge_ravlm.export.data.scenes import SIDE, Material, background, material, object_scenes, paste, weather
from edge_ravlm.frames import Pixels

pytestmark = pytest.mark.export


def cut_out(seed: int, size: tuple[int, int] = (30, 40)) -> Pixels:
    """A coloured disc on nothing."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((*size, 4), np.uint8)
    centre, colour = (size[1] // 2, size[0] // 2), (*rng.integers(0, 256, 3).tolist(), 255)
    cv2.circle(picture, centre, min(size) // 3, colour, -1)
    return picture


def photo(seed: int, size: tuple[int, int] = (700, 900)) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.fixture(scope="module")
def half() -> Material:
    return Material([cut_out(seed) for seed in range(3)], [photo(9), photo(10, (200, 300))])


def test_scenes_are_square_pictures_with_their_object_as_label(half: Material) -> None:
    pictures, labels = object_scenes(half, each=2, seed=5)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures), "two scenes of one object differ"


def test_the_same_seed_makes_the_same_scenes(half: Material) -> None:
    first, again, other = (object_scenes(half, each=1, seed=seed)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_background_is_part_of_a_photograph() -> None:
    bands = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 300, 0).repeat(3, 2)
    square = background(Material([], [bands]), np.random.default_rng(0))
    assert square.shape == (SIDE, SIDE, 3)
    assert (np.diff(square[0, :, 0].astype(int)) >= 0).all(), "neither mirrored nor torn"


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (600, 20), (1, 1)])
def test_a_cut_out_covers_what_it_should(size: tuple[int, int]) -> None:
    scene = np.zeros((SIDE, SIDE, 3), np.uint8)
    opaque = np.full((*size, 4), 255, np.uint8)
    pasted = paste(scene, opaque, np.random.default_rng(1), (0.5, 0.5))
    rows, columns = np.nonzero(pasted[..., 0])
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(height, width) == SIDE // 2
    assert height / width == pytest.approx(size[0] / size[1], rel=0.1)
    assert not scene.any(), "the scene given is left alone"


def test_what_is_transparent_stays_background() -> None:
    scene = photo(3, (SIDE, SIDE))
    ghost = np.full((50, 50, 4), 200, np.uint8)
    ghost[..., 3] = 0
    np.testing.assert_array_equal(paste(scene, ghost, np.random.default_rng(1), (0.4, 0.8)), scene)


def test_weather_is_another_moment_of_the_same_view() -> None:
    scene = np.add.outer(np.arange(SIDE), np.arange(SIDE))[..., None].repeat(3, 2).astype(np.float64)
    scene = (30 + scene * 150 / scene.max()).astype(np.uint8)
    taken = weather(scene, np.random.default_rng(2))
    assert taken.shape == scene.shape
    assert taken.dtype == np.uint8
    assert not np.array_equal(taken, scene)
    assert np.corrcoef(taken.ravel(), scene.ravel())[0, 1] > 0.95


def write(folder: Path, name: str, picture: Pixels) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(folder / name), picture)


def test_the_halves_share_neither_object_nor_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built from packages of the real layout, with a few pictures each."""
    stamps, mate = "tuxpaint-stamps/usr/share/tuxpaint/stamps/food", "mate-backgrounds/usr/share/backgrounds/mate"
    for seed in range(7):
        write(tmp_path, f"{stamps}/{seed}.png", cut_out(seed))
    write(tmp_path, f"{stamps}/0_mirror.png", cut_out(0))
    write(tmp_path, f"{stamps}/solid.png", np.full((9, 9, 4), 255, np.uint8))
    write(tmp_path, f"{stamps}/drawing.png", np.full((9, 9, 3), 255, np.uint8))
    write(tmp_path, f"{mate}/nature/Aqua.jpg", np.full((1500, 2000, 3), 10, np.uint8))
    write(tmp_path, f"{mate}/abstract/Gulp.jpg", np.full((40, 40, 3), 20, np.uint8))
    write(tmp_path, "lomiri-wallpapers/usr/share/wallpapers/Dune.jpg", np.full((50, 60, 3), 30, np.uint8))
    (tmp_path / "lomiri-wallpapers/usr/share/wallpapers/default.jpg").symlink_to("Dune.jpg")
    write(tmp_path, "opencv-doc/usr/share/doc/data/home.jpg", np.full((50, 60, 3), 40, np.uint8))
    write(tmp_path, "opencv-doc/usr/share/doc/data/lena.jpg", np.full((50, 60, 3), 50, np.uint8))
    monkeypatch.setattr(scenes, "fetch", lambda name: tmp_path / name)
    train, held_out = material()
    objects = [[picture.tobytes() for picture in half.objects] for half in (train, held_out)]
    assert sorted(len(half) for half in objects) == [3, 4], "no mirror images, no drawings without a cut-out shape"
    assert not set(objects[0]) & set(objects[1])
    tones = [sorted(round(float(picture.mean()), -1) for picture in half.backgrounds) for half in (train, held_out)]
    assert tones == [[10, 30], [40]], "photographs only, each once"
    assert max(train.backgrounds[0].shape) == 1000


@pytest.mark.data
def test_the_halves_of_the_real_packages_are_disjoint() -> None:
    for package in ("tuxpaint-stamps", "mate-backgrounds", "lomiri-wallpapers", "opencv-doc"):
        if cached(package) is None:
            pytest.skip(f"needs {packages()[package].package}, which `make data` fetches")
    train, held_out = material()
    seen, judged = ({picture.tobytes() for picture in half.objects} for half in (train, held_out))
    assert len(train.objects) > 300
    assert len(held_out.backgrounds) >= 9
    assert not seen & judged
