"""What counts as a picture, and which part of it a region is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_ravlm.errors import FrameError, UsageError
from edge_ravlm.frames import MAX_PIXELS, Frame, Region, as_bgr, read_image


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_colour_picture_is_taken_as_it_is_without_a_copy() -> None:
    pixels = noise(4, 6)
    assert as_bgr(pixels) is pixels


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_grey_is_repeated(shape: tuple[int, ...]) -> None:
    grey = noise(4, 6, 1).reshape(shape)
    assert (as_bgr(grey) == grey.reshape(4, 6, 1)).all()
    assert as_bgr(grey).shape == (4, 6, 3)


def test_alpha_is_dropped() -> None:
    pixels = noise(4, 6, 4)
    np.testing.assert_array_equal(as_bgr(pixels), pixels[:, :, :3])


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((0, 6, 3), np.uint8), r"shape \(0, 6, 3\)"),
        (np.zeros((4, 0), np.uint8), r"shape \(4, 0\)"),
        (np.zeros((4, 6, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((4, 6, 5), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((1, 4, 6, 3), np.uint8), r"shape \(1, 4, 6, 3\)"),
        (np.zeros(6, np.uint8), r"shape \(6,\)"),
        (np.zeros((4, 6, 3), np.uint16), "got uint16; scale it first"),
        (np.zeros((4, 6, 3), np.float32), "got float32"),
        (np.zeros((4, 6, 3), bool), "got bool"),
        ([[0, 0], [0, 0]], "got list"),
        (None, "got NoneType"),
        ("photo.jpg", "got str"),
        (np.broadcast_to(np.uint8(0), (10_001, 10_000, 3)), "at most 100 megapixels, got 10000x10001"),
    ],
)
def test_what_is_no_picture_is_said(picture: object, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        Frame.of(picture)  # type: ignore[arg-type]  # that is what is tried


def test_the_largest_picture_is_allowed() -> None:
    assert Frame.of(np.broadcast_to(np.uint8(0), (MAX_PIXELS, 1, 3))).pixels.shape == (MAX_PIXELS, 1, 3)


def test_a_frame_knows_when_it_was_captured_and_is_passed_through() -> None:
    before = time.monotonic()
    frame = Frame(noise(4, 6), index=3, source="gate.mp4")
    assert before <= frame.captured_at <= time.monotonic()
    assert Frame.of(frame) is frame
    assert frame != Frame(frame.pixels, frame.captured_at, 3, "gate.mp4")
    assert len({frame, frame}) == 1


# -- image files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.webp", "p.jpg", "no-suffix", "ünïcode – 門.png"])
def test_image_files_are_read_in_opencvs_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pixels = np.full((40, 60, 3), (200, 100, 20), np.uint8)
    path.write_bytes(bytes(cv2.imencode(Path(name).suffix or ".png", pixels)[1]))
    frame = read_image(path)
    assert frame.source == str(path)
    np.testing.assert_allclose(frame.pixels.astype(int), pixels.astype(int), atol=4)


@pytest.mark.parametrize(
    "picture", [noise(8, 9, 1), noise(8, 9, 4), np.full((8, 9, 3), 40_000, np.uint16)], ids=["grey", "alpha", "16-bit"]
)
def test_files_of_other_depths_and_channels_become_8_bit_colour(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = tmp_path / "p.png"
    assert cv2.imwrite(str(path), picture)
    assert read_image(path).pixels.shape == (8, 9, 3)


def test_unreadable_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(bytes(cv2.imencode(".png", noise(40, 60))[1])[:40])
    (tmp_path / "folder.png").mkdir()
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\x0f\xff\xff\0\x0f\xff\xff\x08\x02\0\0\0" + bytes(64)
    (tmp_path / "huge.png").write_bytes(header)
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "disk.png").open("wb") as file:
        file.truncate(1 << 40)
    for name, says in {
        "none.png": "No such file",
        "empty.png": "0 bytes OpenCV cannot decode",
        "text.png": "13 bytes OpenCV cannot decode",
        "cut.png": "40 bytes OpenCV cannot decode",
        "folder.png": "Is a directory",
        "huge.png": "OpenCV cannot decode",
        "nul\0.png": "null",
        "pipe.png": "a pipe or a device",
        "disk.png": "1099511627776 bytes",
    }.items():
        with pytest.raises(FrameError, match=f"image '.*{name}': expected .*{says}"):
            read_image(tmp_path / name)


def test_a_picture_file_that_is_too_large_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_ravlm.frames.MAX_PIXELS", 2_000_000)
    path = tmp_path / "poster.png"
    assert cv2.imwrite(str(path), np.zeros((1001, 2000), np.uint8))
    with pytest.raises(FrameError, match=r"poster.png': expected at most 2 megapixels, got 2000x1001"):
        read_image(path)


# -- regions ----------------------------------------------------------------------------------------------------------


def test_a_box_is_cropped_without_a_copy() -> None:
    pixels = noise(20, 30)
    crop = Region.box(3, 4, 10, 19).crop(pixels)
    np.testing.assert_array_equal(crop, pixels[4:19, 3:10])
    assert np.shares_memory(crop, pixels)
    for corners in (((10, 19), (3, 4)), ((3, 19), (10, 4))):
        np.testing.assert_array_equal(Region(corners).crop(pixels), crop)


def test_a_polygon_is_its_bounding_box_with_grey_outside() -> None:
    pixels = np.full((40, 40, 3), 255, np.uint8)
    crop = Region(((10, 10), (30, 10), (10, 30))).crop(pixels)
    assert crop.shape == (20, 20, 3)
    assert (crop[0, 0] == 255).all()
    assert (crop[2, 2] == 255).all()
    assert (crop[18, 18] == 127).all()
    assert 0.4 < (crop == 255).mean() < 0.65
    assert (pixels == 255).all()


def test_a_whole_frame_is_a_region() -> None:
    pixels = noise(20, 30)
    np.testing.assert_array_equal(Region.box(0, 0, 30, 20).crop(pixels), pixels)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 31, 5), (0, 0, 5, 21), (0, 0, 2**40, 5)])
def test_a_region_outside_the_frame_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError, match="region 'gate': expected corners inside the 30x20 frame"):
        Region.box(*box, name="gate").crop(noise(20, 30))


@pytest.mark.parametrize("points", [(), ((1, 1),), ((1, 1), (1, 5)), ((1, 1), (5, 1)), ((2, 2), (2, 2), (2, 2))])
def test_a_region_without_pixels_is_refused(points: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UsageError, match="encloses pixels"):
        Region(points)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("1,2,3,4", Region.box(1, 2, 3, 4)),
        ("gate=1,2,3,4", Region.box(1, 2, 3, 4, name="gate")),
        ("the = gate=1,2,3,4", Region.box(1, 2, 3, 4, name="the = gate")),
        ("0,0 9,0 9,9", Region(((0, 0), (9, 0), (9, 9)))),
        (" gate =1,2,3,4", Region.box(1, 2, 3, 4, name="gate")),
        (" 1, 2, 3, 4 ", Region.box(1, 2, 3, 4)),
    ],
)
def test_regions_are_read_from_text(text: str, region: Region) -> None:
    assert Region.parse(text) == region


@pytest.mark.parametrize("text", ["", "gate", "gate=", "1,2,3", "1,2,3,x", "1.5,2,3,4", "1,2", "3,4,3,9"])
def test_a_region_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="region"):
        Region.parse(text)


@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    points=st.lists(st.tuples(st.integers(-5, 60), st.integers(-5, 60)), max_size=6),
)
def test_any_region_crops_to_its_size_or_is_refused(height: int, width: int, points: list[tuple[int, int]]) -> None:
    try:
        crop = Region(tuple(points)).crop(np.zeros((height, width, 3), np.uint8))
    except UsageError:
        return
    xs, ys = zip(*points, strict=True)
    assert crop.shape == (max(ys) - min(ys), max(xs) - min(xs), 3)


def test_a_regions_corners_may_be_any_pairs_of_numbers() -> None:
    """Detectors give floats, in arrays or lists."""
    wanted = Region.box(10, 20, 31, 40)
    assert Region.box(10.2, 19.6, 31.0, 40.4) == wanted  # type: ignore[arg-type]
    assert Region([[10, 20], [31, 40]]) == wanted  # type: ignore[arg-type]
    assert Region.box(*np.array([10, 20, 31, 40])) == wanted
    assert hash(Region(np.array([[10.0, 20.0], [31.0, 40.0]]))) == hash(wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("points", [(1, 2, 30, 40), (("a", "b"), ("c", "d")), ((0, 0), (float("nan"), 9)), None])
def test_corners_that_are_none_are_refused(points: Any) -> None:
    with pytest.raises(UsageError, match="expected a box"):
        Region(points)
