"""The second look: where it looks, what it cuts out, and what becomes of several looks."""

from __future__ import annotations

import numpy as np
import pytest

from edge_ravlm.manifest import Closer
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.closer import Focus, cut_out, find, together

SQUARE = Preprocess(height=224, width=224)


def attention(rows: int, columns: int, at: tuple[int, int]) -> np.ndarray:
    grid = np.zeros((rows, columns), np.float32)
    grid[at] = 1
    return grid.ravel()


@pytest.mark.parametrize(("at", "x", "y"), [((0, 0), 1 / 14, 1 / 14), ((3, 3), 0.5, 0.5), ((1, 5), 11 / 14, 3 / 14)])
def test_the_focus_is_the_middle_of_the_attention(at: tuple[int, int], x: float, y: float) -> None:
    focus = find(Closer(side=160, margin=1.5), SQUARE, attention(7, 7, at), 0.4)
    assert (focus.x, focus.y, focus.extent) == (pytest.approx(x), pytest.approx(y), 0.4)


def test_gain_and_shift_move_it() -> None:
    closer = Closer(side=160, margin=1.5, x=(2.0, -0.5), y=(1.0, 0.1))
    focus = find(closer, SQUARE, attention(7, 7, (3, 5)), 0.4)
    assert (focus.x, focus.y) == (pytest.approx(2 * 11 / 14 - 0.5), pytest.approx(0.6))


def test_a_grid_may_be_wider_than_high() -> None:
    focus = find(Closer(side=64, margin=1.5), Preprocess(height=128, width=256), attention(4, 8, (1, 6)), 0.4)
    assert (focus.x, focus.y) == (pytest.approx(6.5 / 8), pytest.approx(1.5 / 4))


def picture(side: int = 224) -> np.ndarray:
    """Blue tells the column, green the row."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(side)[None], np.arange(side)[:, None]
    return pixels


def middle(part: np.ndarray) -> tuple[float, float]:
    return float(part[..., 0].mean()), float(part[..., 1].mean())


def test_the_part_lies_around_the_thing() -> None:
    part = cut_out(picture(), Focus(0.5, 0.25, 0.3), 1.5)
    assert part.shape == (int(0.45 * 224), int(0.45 * 224), 3)
    assert middle(part) == (pytest.approx(112, abs=1.5), pytest.approx(56, abs=1.5))


@pytest.mark.parametrize(
    "focus", [Focus(-3, 9, 0.5), Focus(0.99, 0.0, 0.3), Focus(0.5, 0.5, -1.0), Focus(0.1, 0.9, 40)]
)
def test_it_stays_in_the_picture_and_keeps_a_size(focus: Focus) -> None:
    height, width = cut_out(picture(), focus, 1.5).shape[:2]
    assert 0.28 * 224 <= height == width <= 0.96 * 224


def test_looks_together_are_one_unit_vector_between_them() -> None:
    one, other = np.eye(4, dtype=np.float32)[:2]
    both = together([one, other])
    assert both.dtype == np.float32
    np.testing.assert_allclose(both, [0.5**0.5, 0.5**0.5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(together([one]), one)
    assert np.isfinite(together([one, -one])).all()
