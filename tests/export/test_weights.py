"""Int8 weights: no uint8 input can make a pair saturate, and rounding looks at the inputs that will come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge_ravlm.export.quantize.weights import LIMIT, pair_safe_scales, round_for_inputs, symmetric_scales

pytestmark = pytest.mark.export

ROWS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(-8, 8, width=32) | st.sampled_from([0.0, 5.0, -5.0]),  # equal neighbours are the worst
)


def moments_of(inputs: np.ndarray) -> np.ndarray:
    """Of inputs [n, k] and the constant 1."""
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    return np.asarray(inputs.T @ inputs / len(inputs))


def correlated(n: int, k: int, seed: int) -> np.ndarray:
    """Inputs as behind a ReLU: they move together, none is negative; another seed is another sample."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(k).normal(size=(4, k))
    mixed = rng.normal(size=(n, 4)) @ mixing + 0.3 * rng.normal(size=(n, k)) + 0.5
    return np.maximum(mixed, 0)


def pair_sums(rounded: np.ndarray) -> np.ndarray:
    """Largest and smallest 16-bit sums that vpmaddubsw forms of int8 [outputs, inputs] and any uint8 inputs."""
    wide = np.pad(rounded.astype(int), ((0, 0), (0, rounded.shape[1] % 2)))
    pairs = wide.reshape(len(wide), -1, 2)
    return np.stack([255 * np.maximum(pairs, 0).sum(2), 255 * np.minimum(pairs, 0).sum(2)])


@settings(deadline=None, max_examples=150)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_no_input_makes_a_pair_saturate(rows: np.ndarray, seed: int) -> None:
    scales = np.maximum(pair_safe_scales(rows), np.float32(1e-10))
    inputs = correlated(40, rows.shape[1], seed)
    bias = np.zeros(len(rows), np.float32)
    rounded, _ = round_for_inputs(rows, bias, scales, moments_of(inputs), paired=True)
    assert rounded.dtype == np.int8
    assert pair_sums(rounded).max() <= 32767
    assert pair_sums(rounded).min() >= -32768
    assert rounded.min() >= -127


@settings(deadline=None, max_examples=150)
@given(rows=ROWS)
def test_with_inputs_that_do_not_correlate_every_weight_goes_to_its_nearest_step(rows: np.ndarray) -> None:
    scales = np.maximum(pair_safe_scales(rows), np.float32(1e-10))
    moments = np.eye(rows.shape[1] + 1)
    rounded, bias = round_for_inputs(rows, rows[:, 0], scales, moments, paired=True)
    assert np.abs(rounded * scales.astype(np.float64)[:, None] - rows).max() <= 0.500001 * scales.max()
    np.testing.assert_allclose(bias, rows[:, 0])


def test_only_large_neighbours_of_one_sign_cost_resolution() -> None:
    alone, both, opposite, apart = (
        np.float32([row]) for row in ([1, 0.001, 0, 0], [1, 1, 0, 0], [1, -1, 0, 0], [1, 0, 1, 0])
    )
    assert pair_safe_scales(both) > 1.9 * symmetric_scales(both)
    for row in (alone, opposite, apart):
        np.testing.assert_allclose(pair_safe_scales(row), symmetric_scales(row), rtol=0.01)


@pytest.mark.parametrize("paired", [True, False])
def test_rounding_for_the_inputs_beats_the_nearest_step(paired: bool) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(16, 40)).astype(np.float32)
    bias = rng.normal(size=16).astype(np.float32)
    scales = pair_safe_scales(rows) if paired else symmetric_scales(rows)
    rounded, corrected = round_for_inputs(rows, bias, scales, moments_of(correlated(2000, 40, 2)), paired)
    nearest = np.rint(rows / scales[:, None])
    unseen = correlated(2000, 40, 3)
    error = unseen @ (rounded * scales[:, None] - rows).T + corrected - bias
    plain = unseen @ (nearest * scales[:, None] - rows).T
    assert np.mean(error**2) < 0.3 * np.mean(plain**2)


def test_rounding_does_not_shift_the_mean_of_an_output() -> None:
    rng = np.random.default_rng(1)
    rows, bias = rng.normal(size=(16, 40)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    inputs, scales = correlated(500, 40, 2), pair_safe_scales(rows)
    rounded, corrected = round_for_inputs(rows, bias, scales, moments_of(inputs), paired=True)
    exact = (inputs @ rows.T + bias).mean(0)
    np.testing.assert_allclose((inputs @ (rounded * scales[:, None]).T + corrected).mean(0), exact, atol=1e-4)


def test_outputs_with_inputs_of_their_own_are_rounded_for_those() -> None:
    rng = np.random.default_rng(5)
    rows, bias = rng.normal(size=(3, 9)).astype(np.float32), np.zeros(3, np.float32)
    scales = symmetric_scales(rows)
    each = [moments_of(correlated(300, 9, seed) ** (seed + 1)) for seed in range(3)]
    together, _ = round_for_inputs(rows, bias, scales, np.stack(each), paired=False)
    for row in range(3):
        alone, _ = round_for_inputs(rows[[row]], bias[[row]], scales[[row]], each[row], paired=False)
        np.testing.assert_array_equal(together[row], alone[0])


def test_inputs_that_are_always_zero_and_channels_without_weights_do_no_harm() -> None:
    rows, bias = np.float32([[0, 0, 0, 0], [1, 0.4, 0.3, -1]]), np.float32([3, 4])
    inputs = correlated(200, 4, 0) * [1, 0, 1, 0]
    scales = np.maximum(pair_safe_scales(rows), np.float32(1e-10))
    rounded, corrected = round_for_inputs(rows, bias, scales, moments_of(inputs), paired=True)
    assert rounded[0].tolist() == [0, 0, 0, 0]
    assert rounded[1, [1, 3]].tolist() == np.rint(rows[1, [1, 3]] / scales[1]).tolist()
    assert np.isfinite(corrected).all()
    assert corrected[0] == 3


def test_the_limit_is_the_kernels() -> None:
    assert 255 * LIMIT <= 32767 < 255 * (LIMIT + 1)
