"""Has anything moved? Noise has not; whatever is worth a new answer has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.scene import BLOCK, is_still

SIDE = 224


def scene(seed: int = 0) -> Pixels:
    """Smooth hills between 60 and 190, so that changes of 50 levels are not clipped."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    return (125 + 65 * np.sin(5 * x[..., None] + 3 * y[..., None] + phases)).astype(np.uint8)[None]


def noisy(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return np.clip(pixels + noise.round(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0, 2, 5, 8])
def test_sensor_noise_is_still(sigma: float) -> None:
    for seed in range(5):
        assert is_still(noisy(scene(), sigma, seed), noisy(scene(), sigma, 100 + seed))


@given(
    x=st.integers(0, SIDE - 2 * BLOCK),
    y=st.integers(0, SIDE - 2 * BLOCK),
    sign=st.sampled_from([-1, 1]),
    channel=st.sampled_from([slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)]),
)
def test_a_small_thing_is_seen_wherever_it_appears(x: int, y: int, sign: int, channel: slice) -> None:
    before = scene()
    now = before.astype(int)
    now[0, y : y + BLOCK, x : x + BLOCK, channel] += sign * 50
    assert not is_still(before, now.astype(np.uint8))
    assert not is_still(now.astype(np.uint8), before)


def test_a_lamp_that_changes_colour_but_not_brightness_is_seen() -> None:
    red, green = scene(), scene()
    red[0, 40:60, 40:60] = (0, 0, 200)
    green[0, 40:60, 40:60] = (0, 200, 0)
    assert not is_still(red, green)


def test_a_pattern_as_bright_as_what_it_covers_is_seen() -> None:
    before = np.full((1, SIDE, SIDE, 3), 120, np.uint8)
    now = before.copy()
    now[0, 32:64, 32:64] = np.where(np.indices((32, 32)).sum(axis=0)[..., None] % 2, 180, 60)
    assert not is_still(before, now)


def test_a_pattern_that_turns_over_is_seen() -> None:
    stripes = np.full((1, SIDE, SIDE, 3), 60, np.uint8)
    stripes[:, :, ::2] = 200
    assert not is_still(stripes, np.roll(stripes, 1, axis=2))


def test_a_camera_of_a_slightly_other_exposure_is_still_and_a_lamp_switched_on_is_not() -> None:
    before = scene()
    assert is_still(before, before + np.uint8(2))
    assert not is_still(before, before + np.uint8(12))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (16, 16), (100, 120), (320, 192)])
def test_every_input_size_of_an_encoder_works(height: int, width: int) -> None:
    preprocess = Preprocess(height=height, width=width)
    grey, bright = (preprocess(Frame(np.full((50, 70, 3), level, np.uint8))) for level in (100, 160))
    assert is_still(grey, grey.copy())
    assert not is_still(grey, bright)
