"""Hard composed scenes: equal seeds give equal pictures, and what is in them is where and as large as it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_ravlm.errors import UsageError
from edge_ravlm.export.data.composites import Wear, composite, placed, worn
from edge_ravlm.export.data.scenes import SIDE, Material
from edge_ravlm.frames import Pixels

pytestmark = pytest.mark.export

CLEAN = Wear(rotation=0, perspective=0, cut_off=0, clutter=0, blurred=0, gamma=(1, 1), compressed=0)
GREY: Pixels = np.full((SIDE, SIDE, 3), 100, np.uint8)


def opaque(size: tuple[int, int], colour: tuple[int, int, int] = (0, 0, 255)) -> Pixels:
    return np.full((*size, 4), (*colour, 255), np.uint8)


@pytest.fixture(scope="module")
def source() -> Material:
    rng = np.random.default_rng(0)
    return Material([opaque((40, 60))], [rng.integers(0, 256, (400, 500, 3), np.uint8) for _ in range(2)])


def test_equal_seeds_give_equal_pictures(source: Material) -> None:
    first, again, other = (composite(source, 0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (SIDE, SIDE, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 300), width=st.integers(1, 300))
def test_a_cut_out_is_as_large_as_asked_and_inside(seed: int, height: int, width: int) -> None:
    wear = Wear(rotation=0, perspective=0, cut_off=0)
    _, corners = placed(GREY, opaque((height, width)), np.random.default_rng(seed), wear)
    share = max(np.ptp(corners, axis=0)) / SIDE
    assert share == pytest.approx(0.4, abs=0.2 + 1e-5)
    assert corners.min() >= -1e-3
    assert corners.max() <= SIDE + 1e-3


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000))
def test_a_cut_out_over_the_border_is_mostly_seen(seed: int) -> None:
    wear = Wear(cut_off=1)
    _, corners = placed(GREY, opaque((50, 90)), np.random.default_rng(seed), wear)
    extent = np.ptp(corners, axis=0)
    outside = np.maximum(-corners.min(axis=0), corners.max(axis=0) - SIDE) / extent
    assert 0.05 - 1e-3 <= outside.max() <= wear.hidden + 1e-3
    assert outside.min() <= 1e-3, "over one border only"


def test_a_cut_out_lies_where_its_corners_say() -> None:
    scene, corners = placed(GREY, opaque((80, 80)), np.random.default_rng(3), CLEAN)
    rows, columns = np.nonzero((scene == (0, 0, 255)).all(axis=2))
    assert [columns.min(), rows.min()] == pytest.approx(corners[0], abs=1.5)
    assert [columns.max() + 1, rows.max() + 1] == pytest.approx(corners[2], abs=1.5)
    assert (GREY == 100).all(), "the scene given is left alone"


def test_what_is_thin_is_drawn_large_enough() -> None:
    for seed in range(5):
        _, thin = placed(GREY, opaque((128, 20)), np.random.default_rng(seed), CLEAN)
        assert np.ptp(thin, axis=0).min() >= 0.07 * SIDE - 1e-3
        _, line = placed(GREY, opaque((128, 2)), np.random.default_rng(seed), CLEAN)
        assert np.ptp(line, axis=0).max() == pytest.approx(0.6 * SIDE), "no larger than the largest"


@pytest.mark.parametrize("seed", range(5))
def test_edges_have_no_fringe(seed: int) -> None:
    """A grey ring on the same grey: dark colours under transparent pixels must not come along."""
    ring = np.zeros((150, 150, 4), np.uint8)
    ring[20:-20, 20:-20] = 100
    ring[20:-20, 20:-20, 3] = 255
    scene, _ = placed(GREY, ring, np.random.default_rng(seed))
    assert np.abs(scene.astype(int) - 100).max() <= 1


def test_every_kind_of_wear_changes_the_picture() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    plain = worn(scene, np.random.default_rng(1), CLEAN).astype(int)
    roughness = np.abs(np.diff(plain, axis=1)).mean()
    blurred = worn(scene, np.random.default_rng(1), replace(CLEAN, blurred=1)).astype(int)
    assert np.abs(np.diff(blurred, axis=1)).mean() < 0.8 * roughness
    dark = worn(scene, np.random.default_rng(1), replace(CLEAN, gamma=(1.6, 1.6)))
    assert dark.mean() < plain.mean() - 10
    packed = worn(scene, np.random.default_rng(1), replace(CLEAN, compressed=1, quality=(30, 30)))
    assert np.abs(packed.astype(int) - plain).mean() > 5


@pytest.mark.parametrize("scale", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.1)])
def test_a_scale_that_cannot_be_is_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="scale: expected 0 < low <= high <= 1"):
        Wear(scale=scale)
