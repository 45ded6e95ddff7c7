"""Second moments of what convolutions meet, against sums written out place by place."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import helper, numpy_helper

from edge_ravlm.errors import DataError
from edge_ravlm.export.quantize.moments import convolutions, second_moments

pytestmark = pytest.mark.export

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (1, 9, 8, 4), dtype=np.uint8) for _ in range(3)]


def network(kernel: tuple[int, int, int, int], bias: bool = True, **attributes: object) -> onnx.ModelProto:
    """One convolution over the picture's channels."""
    text = """<ir_version: 10, opset_import: ["" : 18]> one (uint8[n, h, w, 4] image) => (float[n, c, y, x] out) {
        grid = Transpose <perm = [0, 3, 1, 2]> (image)
        floats = Cast <to = 1> (grid)
    }"""
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    inputs = ["floats", "conv.weight", "conv.bias"][: 3 if bias else 2]
    model.graph.node.append(helper.make_node("Conv", inputs, ["out"], name="conv", **attributes))
    weight = RNG.normal(size=kernel).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "conv.weight"))
    if bias:
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(kernel[0], np.float32), "conv.bias"))
    return model


def windows(
    picture: np.ndarray, size: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...]
) -> list[np.ndarray]:
    """Float64 [kernel rows, kernel columns, channels] at every place."""
    top, left, bottom, right = pads
    grid = np.pad(picture[0].astype(np.float64), ((top, bottom), (left, right), (0, 0)))
    rows = range(0, grid.shape[0] - size[0] + 1, strides[0])
    columns = range(0, grid.shape[1] - size[1] + 1, strides[1])
    return [grid[y : y + size[0], x : x + size[1]] for y in rows for x in columns]


def with_one(values: np.ndarray) -> np.ndarray:
    return np.append(values, 1.0)


@pytest.mark.parametrize(
    ("size", "strides", "pads"),
    [
        ((1, 1), (1, 1), (0, 0, 0, 0)),
        ((3, 3), (1, 1), (1, 1, 1, 1)),
        ((3, 3), (2, 2), (0, 0, 1, 1)),
        ((3, 2), (2, 1), (2, 0, 1, 3)),
    ],
    ids=["pointwise", "padded", "strided", "all at once"],
)
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_moments_are_those_of_every_place(
    size: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], depthwise: bool
) -> None:
    kernel = (4, 1, *size) if depthwise else (5, 4, *size)
    model = network(kernel, strides=strides, pads=pads, group=4 if depthwise else 1)
    (found,) = second_moments(model, PICTURES).values()

    places = [window for picture in PICTURES for window in windows(picture, size, strides, pads)]
    if depthwise:
        each = [[np.outer(*[with_one(p[..., c].ravel())] * 2) for p in places] for c in range(4)]
        expected = np.stack([np.mean(channel, axis=0) for channel in each])
    else:
        expected = np.mean([np.outer(*[with_one(p.ravel())] * 2) for p in places], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_patches_times_rows_is_the_convolution() -> None:
    """Weights and inputs are in the same order."""
    for kernel, attributes in (
        ((5, 4, 3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
        ((4, 1, 3, 3), {"group": 4}),
    ):
        model = network(kernel, **attributes)
        (convolution,) = convolutions(model.graph)
        grid = np.asarray(PICTURES[0], np.float32).transpose(0, 3, 1, 2)
        patches, rows = convolution.patches(grid, 0), convolution.rows
        sums = np.einsum("ck,ckp->cp", rows, patches) if convolution.is_depthwise else rows @ patches
        expected = onnx.reference.ReferenceEvaluator(model).run(None, {"image": PICTURES[0]})[0]
        np.testing.assert_allclose(sums, expected[0].reshape(len(sums), -1), rtol=1e-4, atol=1e-2)
        np.testing.assert_array_equal(convolution.from_rows(rows), convolution.weight)


def test_a_large_picture_is_sampled_at_different_places_each_time() -> None:
    large = [RNG.integers(0, 256, (1, 120, 90, 4), dtype=np.uint8) for _ in range(6)]
    (convolution,) = convolutions(network((5, 4, 1, 1)).graph)
    grid = large[0].astype(np.float32).transpose(0, 3, 1, 2)
    first, second = (convolution.patches(grid, phase) for phase in (0, 1))
    assert first.shape[1] < 120 * 90 / 4
    assert not np.array_equal(first, second)
    (sampled,) = second_moments(network((5, 4, 1, 1)), large).values()
    pixels = np.column_stack([np.concatenate(large).reshape(-1, 4).astype(np.float64), np.ones(6 * 120 * 90)])
    np.testing.assert_allclose(sampled, pixels.T @ pixels / len(pixels), rtol=0.03)


def test_progress_counts_pictures() -> None:
    calls: list[None] = []
    second_moments(network((5, 4, 1, 1)), PICTURES, lambda: calls.append(None))
    assert len(calls) == len(PICTURES)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (network((5, 4, 3, 3), auto_pad="SAME_UPPER"), "auto_pad"),
        (network((5, 4, 3, 3), bias=False), "2 inputs"),
        (network((4, 2, 3, 3), group=2), "2 groups"),
        (network((8, 1, 3, 3), group=4), "4 groups"),
    ],
    ids=["auto_pad", "no bias", "grouped", "depth multiplier"],
)
def test_other_convolutions_are_refused_by_name(model: onnx.ModelProto, got: str) -> None:
    with pytest.raises(DataError, match=rf"convolution 'conv': expected .*got .*{got}"):
        convolutions(model.graph)
