"""The layer that quantization harms is found, and measured as an export with ``keep_float`` would leave it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_ravlm.export.quantize.cpu_u8 import quantize
from edge_ravlm.export.quantize.keep_float import in_float
from edge_ravlm.export.quantize.sensitivity import layer_gains
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import open_session

pytestmark = pytest.mark.export

LAYERS = ["stem.1", "expand", "depthwise", "project", "plain"]


@pytest.fixture(scope="module")
def embed(small_pictures: list[np.ndarray]) -> Callable[[bytes], np.ndarray]:
    """On the session that ships."""

    def run(model: bytes) -> np.ndarray:
        session = open_session(model, Model(file="m"), threads=1)
        try:
            return session.run({"image": np.concatenate(small_pictures[48:])}, ("embedding",))[0]
        finally:
            session.close()

    return run


@pytest.fixture(scope="module")
def original(hard_model: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(hard_model)


@pytest.fixture(scope="module")
def quantized(original: onnx.ModelProto, small_pictures: list[np.ndarray]) -> onnx.ModelProto:
    return quantize(original, small_pictures[:48])


def loss(embed: Callable[[bytes], np.ndarray], model: onnx.ModelProto, original: onnx.ModelProto) -> float:
    cosines = (embed(model.SerializeToString()) * embed(original.SerializeToString())).sum(1)
    return float(1 - cosines.mean())


def test_the_layer_that_8_bits_cannot_hold_is_named(
    original: onnx.ModelProto, quantized: onnx.ModelProto, embed: Callable[[bytes], np.ndarray]
) -> None:
    calls: list[None] = []
    before = original.SerializeToString(), quantized.SerializeToString()
    gains = layer_gains(original, quantized, embed, lambda: calls.append(None))
    assert list(gains) == LAYERS
    assert max(gains, key=gains.__getitem__) == "expand"
    assert gains["expand"] > 0.5 * loss(embed, quantized, original)
    assert len(calls) == len(LAYERS)
    assert (original.SerializeToString(), quantized.SerializeToString()) == before


@pytest.mark.parametrize("layer", LAYERS)
def test_a_gain_is_what_keeping_the_layer_in_float_brings(
    original: onnx.ModelProto,
    quantized: onnx.ModelProto,
    embed: Callable[[bytes], np.ndarray],
    small_pictures: list[np.ndarray],
    layer: str,
) -> None:
    exported = quantize(original, small_pictures[:48], keep_float=[layer])
    expected = loss(embed, quantized, original) - loss(embed, exported, original)
    found = loss(embed, quantized, original) - loss(embed, in_float(original, quantized, layer), original)
    assert found == pytest.approx(expected, abs=0.1 * loss(embed, quantized, original))


def test_layers_that_are_in_float_already_are_not_asked_about(
    original: onnx.ModelProto, embed: Callable[[bytes], np.ndarray], small_pictures: list[np.ndarray]
) -> None:
    exported = quantize(original, small_pictures[:48], keep_float=["expand"])
    assert list(layer_gains(original, exported, embed)) == [layer for layer in LAYERS if layer != "expand"]


def test_signed_activations_are_read_before_they_are_quantized() -> None:
    """As quantizers for TensorRT leave a layer out: it reads what its own Q/DQ pair would have rounded."""
    text = """<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2, h, w] x) => (float[n, 2, h, w] y) {
        %s
    }"""
    original = onnx.parser.parse_model(text % "y = Conv (x, weight, bias)")
    quantized = onnx.parser.parse_model(
        text
        % """q = QuantizeLinear (x, x_step, zero)
        dq = DequantizeLinear (q, x_step, zero)
        w = DequantizeLinear (rounded, w_step, zero)
        y = Conv (dq, w, bias)"""
    )
    for model in (original, quantized):
        model.graph.node[-1].name = "conv"
    floats = {"weight": np.float32([[[[0.31]], [[0]]], [[[0]], [[0.72]]]]), "bias": np.float32([0.1, 0.2])}
    integers = {"rounded": np.int8([[[[1]], [[0]]], [[[0]], [[1]]]]), "zero": np.int8(0)}
    steps = {"x_step": np.float32(0.5), "w_step": np.float32(0.5)}
    for model, values in ((original, floats), (quantized, floats | integers | steps)):
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in values.items())

    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype(np.float32)
    found, wanted, coarse = (
        open_session(model.SerializeToString(), Model(file="m", graph_optimization="disable"), threads=1).run(
            {"x": x}, ("y",)
        )[0]
        for model in (in_float(original, quantized, "conv"), original, quantized)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(coarse - wanted).max() > 0.05
