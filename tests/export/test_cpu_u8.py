"""The flavour ``cpu-u8`` on a small student, in the session that ships: near full precision, and never saturated."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from edge_ravlm.errors import DataError
from edge_ravlm.export import parity
from edge_ravlm.export.quantize.candidates import CALIBRATIONS, calibrations, closeness
from edge_ravlm.export.quantize.cpu_u8 import quantize, start_on_bytes
from edge_ravlm.export.quantize.moments import Convolution, convolutions
from edge_ravlm.export.quantize.weights import LIMIT
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import open_session

pytestmark = pytest.mark.export

LAYERS = ["stem.1", "expand", "depthwise", "project", "plain"]
SEEN = 48


def embed(model: onnx.ModelProto, pictures: list[np.ndarray], optimization: Any = "all") -> np.ndarray:
    """In the runtime's own session."""
    session = open_session(model.SerializeToString(), Model(file="m", graph_optimization=optimization), threads=1)
    try:
        return np.concatenate([session.run({"image": picture}, ("embedding",))[0] for picture in pictures])
    finally:
        session.close()


def agreement(found: np.ndarray, reference: np.ndarray) -> float:
    return float(parity.cosine(found, reference).mean())


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantized_inputs(model: onnx.ModelProto, layer: str) -> list[onnx.NodeProto]:
    """The DequantizeLinear nodes in front of a convolution: input, weights, bias."""
    makers = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == layer)
    return [makers[name] for name in node.input]


def optimized(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Operators that ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.fixture(scope="module")
def original(small_model: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(small_model)


@pytest.fixture(scope="module")
def unseen(small_pictures: list[np.ndarray]) -> list[np.ndarray]:
    return small_pictures[SEEN:]


@pytest.fixture(scope="module")
def reference(original: onnx.ModelProto, unseen: list[np.ndarray]) -> np.ndarray:
    return embed(original, unseen)


@pytest.fixture(scope="module")
def quantized(original: onnx.ModelProto, small_pictures: list[np.ndarray]) -> onnx.ModelProto:
    return quantize(original, small_pictures[:SEEN])


# -- what comes out -----------------------------------------------------------------------------------------------


def test_embeddings_stay_close_to_full_precision(
    quantized: onnx.ModelProto, unseen: list[np.ndarray], reference: np.ndarray
) -> None:
    cosines = parity.cosine(embed(quantized, unseen), reference)
    assert cosines.mean() > 0.997
    assert cosines.min() > 0.98


def test_optimized_kernels_add_up_like_exact_ones(quantized: onnx.ModelProto, unseen: list[np.ndarray]) -> None:
    """Where pairs saturated, ONNX Runtime's integer kernels would differ from its floating-point Q/DQ nodes."""
    exact = embed(quantized, unseen, "disable")
    assert parity.cosine(embed(quantized, unseen), exact).min() > 0.999


def test_every_convolution_runs_in_integers(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    operators = optimized(quantized, tmp_path)
    assert operators.count("QLinearConv") == len(LAYERS)
    assert operators.count("QLinearAdd") == 1
    assert "Conv" not in operators
    assert "Relu" not in operators


def test_the_original_is_left_as_it_was(
    original: onnx.ModelProto, quantized: onnx.ModelProto, small_model: bytes
) -> None:
    assert original.SerializeToString() == small_model


def test_the_same_pictures_give_the_same_bytes(
    original: onnx.ModelProto, quantized: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    assert quantize(original, small_pictures[:SEEN]).SerializeToString() == quantized.SerializeToString()


def test_the_oldest_runtimes_can_load_it(quantized: onnx.ModelProto) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    assert quantized.opset_import[0].version <= parity.OPSET_LIMIT
    assert quantized.ir_version <= parity.IR_LIMIT
    assert [entry.domain for entry in quantized.opset_import] == [""]


def test_nothing_of_this_machine_is_in_the_file(quantized: onnx.ModelProto) -> None:
    copy = onnx.load_model_from_string(quantized.SerializeToString())
    del copy.graph.initializer[:]  # random bytes spell anything
    for word in (str(Path.cwd()), tempfile.gettempdir(), "site-packages", ".py", "stack_trace"):
        assert word not in str(copy)


def test_progress_counts_every_picture_twice(original: onnx.ModelProto, small_pictures: list[np.ndarray]) -> None:
    calls: list[None] = []
    quantize(original, small_pictures[:5], lambda: calls.append(None))
    assert len(calls) == 10


def test_it_prints_nothing(
    original: onnx.ModelProto, small_pictures: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(original, small_pictures[:3], calibrations=("entropy",))
    assert capfd.readouterr().out == ""


# -- weights and biases -------------------------------------------------------------------------------------------


def original_of(original: onnx.ModelProto, layer: str) -> Convolution:
    names = [node.name for node in original.graph.node if node.op_type == "Conv"]
    return convolutions(original.graph)[names.index(layer)]


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_the_original_ones_to_a_few_steps(
    original: onnx.ModelProto, quantized: onnx.ModelProto, layer: str
) -> None:
    """Rounding for the inputs moves a weight by more than half a step at times, but it stays the same filter."""
    values, (_, weight, _) = constants(quantized), quantized_inputs(quantized, layer)
    rounded, scales = values[weight.input[0]], values[weight.input[1]]
    assert (rounded.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, rounded.shape[:1])
    assert not values[weight.input[2]].any()
    found = rounded * scales[:, None, None, None]
    wanted = original_of(original, layer).weight
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "depthwise"])
def test_no_pair_of_neighbours_saturates(quantized: onnx.ModelProto, layer: str) -> None:
    rounded = constants(quantized)[quantized_inputs(quantized, layer)[1].input[0]].astype(int)
    rows = rounded.transpose(0, 2, 3, 1).reshape(len(rounded), -1)  # the order in which kernels walk: channels last
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    assert np.maximum(pairs, 0).sum(2).max() <= LIMIT
    assert np.maximum(-pairs, 0).sum(2).max() <= LIMIT


@pytest.mark.parametrize("layer", LAYERS)
def test_the_bias_shares_the_scales_of_input_and_weights(quantized: onnx.ModelProto, layer: str) -> None:
    """ONNX Runtime adds it to the integer sums as it is."""
    values, (activation, weight, bias) = constants(quantized), quantized_inputs(quantized, layer)
    assert values[bias.input[0]].dtype == np.int32
    np.testing.assert_allclose(values[bias.input[1]], values[activation.input[1]] * values[weight.input[1]], rtol=1e-6)


def test_the_bias_is_exact_within_a_step_where_weights_are(
    original: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    """Weights that lie on the grid leave nothing to make up for."""
    model = onnx.load_model_from_string(original.SerializeToString())
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("depthwise.weight"))
    grid = np.random.default_rng(0).integers(-127, 128, weight.dims).astype(np.float32)
    grid[:, 0, 1, 1] = 127
    weight.CopyFrom(numpy_helper.from_array(grid / 1000, weight.name))
    found = quantize(model, small_pictures[:8])
    values, (_, rounded, bias) = constants(found), quantized_inputs(found, "depthwise")
    np.testing.assert_array_equal(values[rounded.input[0]], grid)
    dequantized = values[bias.input[0]] * values[bias.input[1]].astype(np.float64)
    difference = np.abs(dequantized - original_of(model, "depthwise").bias)
    assert (difference <= 0.5001 * values[bias.input[1]]).all()


@pytest.mark.parametrize("layer", ["stem.1", "expand", "depthwise", "plain"])
@pytest.mark.parametrize("bias", [0.0, 2.5])
def test_a_channel_without_weights_is_its_bias(
    original: onnx.ModelProto, small_pictures: list[np.ndarray], layer: str, bias: float
) -> None:
    model = onnx.load_model_from_string(original.SerializeToString())
    node = next(node for node in model.graph.node if node.name == layer)
    for tensor in model.graph.initializer:
        if tensor.name in node.input[1:]:
            array = numpy_helper.to_array(tensor).copy()
            array[1] = 0 if array.ndim == 4 else bias
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = quantize(model, small_pictures[:16])
    values, (_, weight, quantized_bias) = constants(found), quantized_inputs(found, layer)
    assert not values[weight.input[0]][1].any()
    step = values[quantized_bias.input[1]][1]
    assert abs(values[quantized_bias.input[0]][1] * float(step) - bias) <= max(step, 1e-6)
    pictures = small_pictures[SEEN:]
    assert agreement(embed(found, pictures), embed(model, pictures)) > 0.995


# -- the graph starts on bytes ------------------------------------------------------------------------------------


def test_starting_on_bytes_changes_no_bit(small_pictures: list[np.ndarray]) -> None:
    """Cast, subtract, divide, quantize, dequantize – or read the bytes as what they are."""
    text = """<ir_version: 10, opset_import: ["" : 18]> g (uint8[n, h, w, 3] image) => (float[n, c, y, x] out)
    <float mean = {127}, float std = {128}, float step = {0.0078125}, uint8 zero = {127}> {
        grid = Transpose <perm = [0, 3, 1, 2]> (image)
        floats = Cast <to = 1> (grid)
        centred = Sub (floats, mean)
        scaled = Div (centred, std)
        quantized = QuantizeLinear (scaled, step, zero)
        dequantized = DequantizeLinear (quantized, step, zero)
        out = Conv (dequantized, weight)
    }"""
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    every_byte = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    feeds = [*small_pictures[:3], every_byte]

    def outputs() -> list[np.ndarray]:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return [session.run(None, {"image": feed})[0] for feed in feeds]

    expected = outputs()
    start_on_bytes(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Transpose", "DequantizeLinear", "Conv"]
    for found, wanted in zip(outputs(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_pictures_without_black_or_white_do_not_narrow_the_input(
    original: onnx.ModelProto, small_pictures: list[np.ndarray], unseen: list[np.ndarray], tmp_path: Path
) -> None:
    """Calibrated on dull pictures, the graph still takes every byte, and its stem still runs in integers."""
    dull = [np.uint8(100 + picture // 8) for picture in small_pictures[:SEEN]]
    found = quantize(original, dull)
    (activation, *_) = quantized_inputs(found, "stem.1")
    values = constants(found)
    assert [float(values[name]) for name in activation.input[1:]] == [1 / 128, 127]
    assert optimized(found, tmp_path).count("QLinearConv") == len(LAYERS)


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_every_way_to_calibrate_works(
    original: onnx.ModelProto,
    small_pictures: list[np.ndarray],
    unseen: list[np.ndarray],
    reference: np.ndarray,
    calibration: Any,
) -> None:
    found = quantize(original, small_pictures[:16], calibrations=(calibration,))
    assert agreement(embed(found, unseen), reference) > 0.97


def test_of_several_ways_to_calibrate_the_nearest_model_is_kept(
    original: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    pictures = small_pictures[:16]
    calls: list[None] = []
    best = quantize(original, pictures, lambda: calls.append(None), calibrations=CALIBRATIONS["cpu-u8"])
    assert len(calls) == 2 * len(pictures)
    judge = closeness(original, pictures, optimize=True)
    each = [judge(quantize(original, pictures, calibrations=(name,))) for name in CALIBRATIONS["cpu-u8"]]
    assert judge(best) == pytest.approx(max(each), abs=1e-7)
    assert min(each) < max(each)


def test_a_way_to_calibrate_that_a_flavour_lacks_is_refused() -> None:
    assert calibrations("trt-s8", "best") == CALIBRATIONS["trt-s8"]
    assert calibrations("cpu-u8", "entropy") == ("entropy",)
    with pytest.raises(DataError, match=r"trt-s8: expected one of best, minmax, entropy, got 'percentile'"):
        calibrations("trt-s8", "percentile")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_can_stay_in_floating_point(
    original: onnx.ModelProto, small_pictures: list[np.ndarray], tmp_path: Path, layer: str
) -> None:
    """In the session that ships, too, where ONNX Runtime would quantize it by itself."""
    found = quantize(original, small_pictures[:8], keep_float=[layer])
    weights = [array for array in constants(found).values() if array.ndim == 4 and array.dtype == np.float32]
    np.testing.assert_array_equal(weights, [original_of(original, layer).weight])
    assert optimized(found, tmp_path).count("QLinearConv") == len(LAYERS) - 1


def test_a_layer_that_stays_in_floating_point_gives_its_agreement_back(
    hard_model: bytes, small_pictures: list[np.ndarray], unseen: list[np.ndarray]
) -> None:
    model = onnx.load_model_from_string(hard_model)
    reference = embed(model, unseen)
    every, but_one = (quantize(model, small_pictures[:SEEN], keep_float=kept) for kept in ((), ["expand"]))
    lost, left = (1 - agreement(embed(found, unseen), reference) for found in (every, but_one))
    assert left < 0.2 * lost


def test_a_layer_that_is_not_there_is_refused(original: onnx.ModelProto, small_pictures: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"layer 'stem\.9': expected .*'stem\.1' or 'plain', got no such layer"):
        quantize(original, small_pictures[:2], keep_float=["expand", "stem.9"])
