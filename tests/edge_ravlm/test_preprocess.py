"""From a frame to the encoder's input: known values, no aliasing, any size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_ravlm.frames import Frame, Region
from edge_ravlm.preprocess import Preprocess

SQUARE = Preprocess(height=224, width=224)
OLDER = Preprocess(height=224, width=224, resize="area-linear-1")


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def checkerboard(height: int, width: int, side: int = 1) -> NDArray[np.uint8]:
    """Black and white squares of ``side`` pixels."""
    rows, columns = np.indices((height, width)) // side
    return np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)


def test_a_picture_of_the_right_size_is_not_changed() -> None:
    pixels = noise(224, 224)
    np.testing.assert_array_equal(SQUARE(Frame(pixels))[0], pixels)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 2), (1, 4), (4, 8)])
def test_halving_again_and_again_is_a_mean_of_blocks(rows: int, columns: int) -> None:
    """Blocks of known values, averaged by hand; each halving rounds by half a level at most."""
    pixels = noise(16 * rows, 16 * columns)
    means = pixels.reshape(16, rows, 16, columns, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(Preprocess(height=16, width=16)(Frame(pixels))[0], means, atol=2.01)


def test_bundles_made_before_average_blocks_of_whole_pixels() -> None:
    small = Preprocess(height=16, width=16, resize="area-linear-1")
    pixels = noise(16 * 4, 16 * 6)
    means = pixels.reshape(16, 4, 16, 6, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small(Frame(pixels))[0], means, atol=0.51)


def test_there_what_is_left_over_is_cut_evenly() -> None:
    small = Preprocess(height=16, width=16, resize="area-linear-1")
    pixels = np.zeros((16 * 3 + 2, 16 * 3 + 2, 3), np.uint8)
    pixels[1:-1, 1:-1] = 200
    assert (small(Frame(pixels)) == 200).all()


def test_channels_keep_their_order_and_rows_stay_rows() -> None:
    pixels = np.zeros((720, 1280, 3), np.uint8)
    pixels[:360] = (10, 20, 30)
    pixels[360:] = (200, 100, 50)
    top, bottom = SQUARE(Frame(pixels))[0, 20], SQUARE(Frame(pixels))[0, 200]
    assert (top == (10, 20, 30)).all()
    assert (bottom == (200, 100, 50)).all()


def test_a_small_picture_is_interpolated() -> None:
    ramp = np.repeat(np.array([[[0] * 3, [200] * 3]], np.uint8), 2, axis=0)
    row = SQUARE(Frame(ramp))[0, 112, :, 0].astype(int)
    assert (row[:50].max(), row[-50:].min()) == (0, 200)
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() <= 3


@pytest.mark.parametrize("preprocess", [SQUARE, OLDER], ids=lambda shape: str(shape.resize))
@pytest.mark.parametrize("size", [(448, 448), (480, 640), (720, 1280), (1080, 1920), (2160, 3840), (447, 900)])
def test_a_fine_checkerboard_becomes_grey(size: tuple[int, int], preprocess: Preprocess) -> None:
    board = checkerboard(*size)
    grey = preprocess(Frame(board)).astype(int)
    assert abs(grey.mean() - 127.5) < 10
    spread = np.abs(grey - 127).max()
    # An odd block holds one square more of one colour; below twice the size linear interpolation does the averaging.
    assert spread <= (64 if size[0] < 448 else 15)


def test_plain_bilinear_would_alias_there() -> None:
    """Why preprocessing is what it is: the same board through cv2.resize alone keeps nearly all of its contrast."""
    aliased = cv2.resize(checkerboard(1080, 1920), (224, 224), interpolation=cv2.INTER_LINEAR)
    assert np.abs(aliased.astype(int) - 127).max() > 60


def test_a_region_is_cropped_before_it_is_resized() -> None:
    pixels = noise(720, 1280)
    box, polygon = Region.box(100, 50, 900, 610), Region(((100, 50), (900, 60), (500, 610)))
    for region in (box, polygon):
        cropped = Frame(np.ascontiguousarray(region.crop(pixels)))
        np.testing.assert_array_equal(SQUARE(Frame(pixels), region), SQUARE(cropped))


def test_the_callers_buffer_is_filled_and_returned() -> None:
    out = SQUARE.buffer()
    out[:] = 7
    filled = SQUARE(Frame(np.full((300, 500, 3), 90, np.uint8)), out=out)
    assert filled is out
    assert (out == 90).all()
    assert (out.shape, out.dtype) == ((1, 224, 224, 3), np.uint8)


def test_a_buffer_is_fresh_each_time() -> None:
    first = SQUARE(Frame(np.full((300, 500, 3), 90, np.uint8)))
    SQUARE(Frame(np.full((300, 500, 3), 10, np.uint8)))
    assert (first == 90).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda pixels: pixels[:, ::-1],
        lambda pixels: pixels[::-1],
        lambda pixels: pixels[..., ::-1],
        lambda pixels: pixels[::2, ::3],
        lambda pixels: pixels.transpose(1, 0, 2),
        np.asfortranarray,
        lambda pixels: np.broadcast_to(pixels[:1], pixels.shape),
    ],
    ids=["mirrored", "upside down", "rgb", "strided", "transposed", "fortran", "broadcast"],
)
@pytest.mark.parametrize("size", [(300, 500), (900, 1000)])
def test_views_are_resized_like_their_copies(view: object, size: tuple[int, int]) -> None:
    pixels = view(noise(*size))  # type: ignore[operator]  # a lambda of the list above
    pixels.setflags(write=False)
    np.testing.assert_array_equal(SQUARE(Frame(pixels)), SQUARE(Frame(np.ascontiguousarray(pixels))))


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 1100), width=st.integers(1, 1100), shade=st.integers(0, 255), tall=st.integers(16, 300))
@example(height=1, width=1, shade=255, tall=224)
@example(height=1, width=1100, shade=1, tall=224)
@example(height=447, width=449, shade=128, tall=224)
def test_every_size_works_and_a_flat_picture_stays_flat(height: int, width: int, shade: int, tall: int) -> None:
    preprocess = Preprocess(height=tall, width=224)
    out = preprocess(Frame(np.full((height, width, 3), shade, np.uint8)))
    assert out.shape == (1, tall, 224, 3)
    assert (out == shade).all()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), low=st.integers(0, 255), high=st.integers(0, 255))
def test_no_value_is_made_that_was_not_between_those_seen(height: int, width: int, low: int, high: int) -> None:
    low, high = sorted((low, high))
    out = SQUARE(Frame(np.random.default_rng(0).integers(low, high + 1, (height, width, 3), np.uint8)))
    assert low <= out.min() <= out.max() <= high
