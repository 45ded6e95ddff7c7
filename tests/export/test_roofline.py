"""Estimates: graphs counted by hand, bounds that hold on a real session, and the command's words and exit codes."""

from __future__ import annotations

import io
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.cli import run
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.export import roofline, yardsticks
from edge_ravlm.export.graph_cost import Layer, Workload, workload
from edge_ravlm.export.roofline import Rates, bound, index_bytes
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.memory.index import SCAN_ROWS, build
from edge_ravlm.targets import target, targets

pytestmark = pytest.mark.export

RATES = Rates(int8_ops=8e9, fp16_ops=4e9, fp32_ops=2e9, bytes=1e9)
HERE = {"x86_64": "cpu-x86", "aarch64": "cpu-arm64"}[platform.machine()]
ELSEWHERE = {"cpu-x86": "cpu-arm64", "cpu-arm64": "cpu-x86"}[HERE]


def model(text: str, inputs: str, outputs: str, **constants: Any) -> onnx.ModelProto:
    """A graph in ONNX's text form; constants are arrays, or shapes of float32 zeros."""
    header = f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => ({outputs})'
    made: onnx.ModelProto = onnx.parser.parse_model(f"{header} {{ {text} }}")
    for name, value in constants.items():
        array = np.zeros(value, np.float32) if isinstance(value, tuple) else np.asarray(value)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def layers(made: onnx.ModelProto, **dims: int) -> tuple[Layer, ...]:
    return workload("test", made, dims).layers


# -- counting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "x", "w", "macs", "op"),
    [
        ("y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)", (1, 3, 8, 8), (16, 3, 3, 3), 16 * 4 * 4 * 27, "Conv"),
        ("y = Conv<group=16>(x, w)", (1, 16, 10, 10), (16, 1, 3, 3), 16 * 8 * 8 * 9, "depthwise Conv"),
        ("y = Conv<group=2>(x, w)", (2, 8, 5, 5), (4, 4, 1, 1), 2 * 4 * 25 * 4, "Conv"),
        ("y = ConvTranspose<strides=[2,2]>(x, w)", (1, 8, 4, 4), (8, 2, 2, 2), 8 * 16 * 2 * 4, "ConvTranspose"),
        ("y = Gemm(x, w)", (5, 7), (7, 3), 5 * 7 * 3, "Gemm"),
        ("y = Gemm<transA=1, transB=1>(x, w)", (7, 5), (3, 7), 5 * 7 * 3, "Gemm"),
        ("y = MatMul(x, w)", (2, 5, 7), (7, 3), 2 * 5 * 7 * 3, "MatMul"),
        ("y = MatMul(x, w)", (4, 5, 7), (4, 7, 3), 4 * 5 * 7 * 3, "MatMul"),
    ],
)
def test_multiply_adds_by_hand(text: str, x: tuple[int, ...], w: tuple[int, ...], macs: int, op: str) -> None:
    (layer,) = layers(model(text, f"float{list(x)} x", "float y", w=w))
    assert (layer.macs, layer.op, layer.precision) == (macs, op, "fp32")
    assert layer.weight_bytes == 4 * np.prod(w)
    assert layer.read_bytes == 4 * np.prod(x)


# torch.export still asks about its own trees in the deprecated way.
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
def test_efficientnet_lite0_costs_what_pytorch_counts() -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    picture = torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        network(picture)
    buffer = io.BytesIO()
    torch.onnx.export(network, (picture,), dynamo=True, verbose=False).save(buffer)
    work = workload("lite0", onnx.load_model_from_string(buffer.getvalue()))
    assert 2 * work.macs == counter.get_total_flops()
    assert 0.38e9 < work.macs < 0.41e9  # 407 M in the paper, which counts the element-wise work too
    parameters = sum(p.numel() for p in network.parameters())
    assert work.resident_bytes == pytest.approx(4 * parameters, rel=0.01)  # batch normalisation is folded


QUANTIZED = """
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    k = DequantizeLinear(w, s, wz)
    c = Conv(d, k)
    r = Relu(c)
    rq = QuantizeLinear(r, s, z)
    rd = DequantizeLinear(rq, s, z)
    y = Conv(rd, v)
"""


def test_q_and_dq_tell_what_runs_in_int8_and_what_moves_in_bytes() -> None:
    eight_bit = {"w": np.zeros((4, 3, 1, 1), np.int8), "wz": np.int8(0), "z": np.uint8(0), "s": np.float32(1)}
    made = model(QUANTIZED, "float[1,3,8,8] x", "float y", v=(2, 4, 1, 1), **eight_bit)
    quantize, first, second = layers(made)
    assert (quantize.op, quantize.read_bytes, quantize.written_bytes) == ("QuantizeLinear", 4 * 192, 192)
    assert (first.precision, first.macs) == ("int8", 4 * 64 * 3)
    assert (first.read_bytes, first.written_bytes) == (192, 256)  # relu and quantization are fused: one byte each
    assert first.weight_bytes == 12 + 4 + 1  # the next layer's scale and zero point with it
    assert (second.precision, second.read_bytes, second.written_bytes) == ("fp32", 256, 4 * 128)


def test_weights_alone_in_int8_save_bytes_but_not_work() -> None:
    text = "k = DequantizeLinear(w, s, z) y = MatMul(x, k)"
    constants = {"w": np.zeros((64, 8), np.int8), "z": np.int8(0), "s": np.float32(1)}
    (layer,) = layers(model(text, "float[2,64] x", "float y", **constants))
    assert (layer.precision, layer.weight_bytes) == ("fp32", 64 * 8)


def test_halves_are_fp16() -> None:
    (layer,) = layers(model("y = MatMul(x, w)", "float16[2,64] x", "float16 y", w=np.zeros((64, 8), np.float16)))
    assert (layer.precision, layer.read_bytes, layer.weight_bytes) == ("fp16", 256, 1024)


def test_element_wise_work_is_fused_into_the_layer_before() -> None:
    text = "c = Conv(x, w) g = Sigmoid(c) s = Mul(c, g) e = Conv(s, w) y = Add(e, s)"
    first, second = layers(model(text, "float[1,4,5,5] x", "float y", w=(4, 4, 1, 1)))
    assert (first.read_bytes, first.written_bytes) == (400, 400)  # neither c nor g leaves the layer
    assert (second.read_bytes, second.written_bytes) == (400, 400)


def test_of_a_table_only_the_rows_looked_up_are_read_but_all_has_to_be_there() -> None:
    made = model("y = Gather(table, ids)", "int64[n,t] ids", "float y", table=np.zeros((1000, 16), np.int8))
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    work = workload("text", made, {"t": 7})
    assert (work.layers[0].weight_bytes, work.resident_bytes) == (7 * 16, 16_000)
    assert (work.layers[0].read_bytes, work.layers[0].written_bytes) == (7 * 8, 7 * 16)


def test_shapes_computed_in_the_graph_are_followed_and_cost_nothing() -> None:
    text = """
        all = Shape(x)
        batch = Slice(all, zero, one)
        shape = Concat<axis=0>(batch, rest)
        flat = Reshape(x, shape)
        y = MatMul(flat, w)
    """
    constants = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([12]), "w": (12, 5)}
    (layer,) = layers(model(text, "float[n,3,4] x", "float y", **constants), n=2)
    assert (layer.op, layer.macs, layer.read_bytes) == ("MatMul", 2 * 12 * 5, 4 * 24)


def test_peak_memory_of_a_diamond_by_hand() -> None:
    text = """
        wide = MatMul(x, up)
        left = MatMul(wide, down)
        right = Softmax(wide)
        both = Concat<axis=1>(left, right)
        y = ReduceMax(both)
    """
    work = workload("diamond", model(text, "float[1,10] x", "float y", up=(10, 100), down=(100, 20)))
    # x 10 + wide 100; wide + left 20; wide + left + right 100; left + right + both 120; both + y 1
    assert work.activation_bytes == 4 * (20 + 100 + 120)
    assert work.resident_bytes == 4 * (1000 + 2000)
    assert work.boundary_bytes == 4 * (10 + 1)


def test_an_output_lives_to_the_end_although_a_later_layer_read_it() -> None:
    text = "tokens = MatMul(x, w) pooled = ReduceMean(tokens) y = MatMul(pooled, v)"
    made = model(text, "float[8,10] x", "float y, float tokens", w=(10, 50), v=(1, 60))
    assert workload("test", made).activation_bytes == 4 * max(80 + 400, 400 + 1 + 60)


def test_an_operator_whose_shape_nobody_knows_is_named_in_one_sentence() -> None:
    made = model("h = Relu(x) y = Relu(h)", "float[1,4] x", "float y")
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    made.graph.node[0].domain, made.graph.node[0].op_type = "com.example", "Riddle"
    with pytest.raises(BundleError, match=r"expected a shape for every tensor, got none for 'h'; export it again"):
        workload("test", made)


# -- bounds -------------------------------------------------------------------------------------------------------


def layer(macs: int, moved: int, op: str = "Conv", precision: Any = "int8") -> Layer:
    return Layer(op.lower(), op, macs, precision, 0, moved, 0)


def test_the_roofline_by_hand() -> None:
    heavy, light = layer(4_000_000, 10_000), layer(100_000, 500_000, "Add", "fp32")
    work = Workload("test", (heavy, light), boundary_bytes=300_000, resident_bytes=0, activation_bytes=0)
    found = bound(work, RATES)
    assert found.least_ms == pytest.approx(8e6 / 8e9 * 1e3 + 2e5 / 2e9 * 1e3)  # 1.1 ms of operations, 0.3 of bytes
    assert found.bound_by == "compute"
    assert found.layered_ms == pytest.approx(1.0 + 0.5)  # the second layer waits for its bytes
    assert (found.op, found.layer) == ("Conv", "conv")
    starved = bound(work, Rates(8e12, 4e12, 2e12, 1e9))
    assert (starved.least_ms, starved.bound_by, starved.op) == (pytest.approx(0.3), "bandwidth", "Add")


@pytest.mark.parametrize("name", [name for name, profile in targets().items() if not profile.measured])
def test_layer_by_layer_is_never_below_the_bound(name: str) -> None:
    rates = Rates.published(target(name))
    for work in roofline.workloads(Bundle.open(STARTER), "cpu-u8", 20_000):
        found = bound(work, rates)
        assert 0 < found.least_ms <= found.layered_ms


def test_measured_profiles_have_no_published_rates() -> None:
    with pytest.raises(UsageError, match="measure it on the device"):
        Rates.published(target("cpu-x86"))


def test_preprocessing_reads_the_frame_and_writes_the_input() -> None:
    work = roofline.preprocessing((720, 1280), Preprocess(height=224, width=224))
    assert work.least_bytes == work.layer_bytes == 3 * (720 * 1280 + 224 * 224)


@pytest.mark.parametrize("entries", [100, SCAN_ROWS + 500])
def test_index_pages_are_what_usearch_writes(tmp_path: Path, entries: int) -> None:
    numbers = np.random.default_rng(0)
    rows = numbers.standard_normal((entries, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    batch = (np.arange(entries), rows.astype(np.float16))
    files = build(tmp_path / "image", [batch], entries, previous=None, done=lambda _: None)
    assert index_bytes(entries, 16) == pytest.approx(sum(file.stat().st_size for file in files), rel=0.01)


def test_searching_many_walks_instead_of_reading_all() -> None:
    few, many, more = (roofline.searching(n, (256, 256)) for n in (1000, 100_000, 1_000_000))
    assert few.least_bytes == 1000 * 256 * 2
    assert many.least_bytes == more.least_bytes < 0.01 * many.resident_bytes
    assert few.resident_bytes == 2 * index_bytes(1000, 256)
    assert roofline.searching(0, (256,)).least_bytes == 0


def test_a_discrete_gpu_carries_the_image_encoder_and_not_the_index() -> None:
    works = roofline.workloads(Bundle.open(STARTER), "cpu-u8", 1000)
    budget: dict[str, Any] = {"flavor": "cpu-u8", "entries": 1000, "memory_mb": 8000.0, "budget_ms": 33.0}
    rtx, jetson = target("rtx-40"), target("jetson-orin-nano")
    apart = roofline.estimate(rtx, works, Rates.published(rtx), **budget)
    shared = roofline.estimate(jetson, works, Rates.published(jetson), **budget)
    assert [stage.name for stage in apart.stages if stage.least_ms is not None] == ["image encoder"]
    assert (apart.index_mb, shared.index_mb) == (0, pytest.approx(2 * 1000 * 520 / 1e6))
    assert all(stage.least_ms is not None for stage in shared.stages)


# -- against the machine at hand ----------------------------------------------------------------------------------


def test_the_bound_holds_on_a_real_session_and_is_of_its_order() -> None:
    """Best of many runs on both sides, taken in turns, so that a busy machine slows them alike."""
    text = "c = Conv<pads=[1,1,1,1]>(x, w) y = Conv(c, v)"
    made = model(text, "float[1,64,40,40] x", "float[1,64,40,40] y", w=(64, 64, 3, 3), v=(64, 64, 1, 1))
    work = workload("convolutions", made)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((1, 64, 40, 40), np.float32)}

    def once() -> float:
        start = time.perf_counter()
        session.run(None, feeds)
        return (time.perf_counter() - start) * 1e3

    least, fastest = float("inf"), float("inf")
    for _ in range(4):
        least = min(least, bound(work, yardsticks.measure_rates(work.least_bytes)).least_ms)
        fastest = min(fastest, *(once() for _ in range(10)))
    assert 0.02 * fastest < least < 2 * fastest


def test_the_starter_takes_longer_than_its_bound_here() -> None:
    bundle = Bundle.open(STARTER)
    works = roofline.workloads(bundle, "cpu-u8", 2000)
    touched = sum(work.least_bytes for work in works)
    before = yardsticks.measure_rates(touched)
    measured = yardsticks.measure_stages(bundle, "cpu-u8", 2000)
    after = yardsticks.measure_rates(touched)
    assert set(measured) == {work.name for work in works}
    for work in works:
        assert min(bound(work, rates).least_ms for rates in (before, after)) < measured[work.name]


def test_int8_is_what_the_processor_is_fast_at() -> None:
    rates = yardsticks.measure_rates(1)
    assert 1e9 < rates.fp32_ops < 1e13
    assert rates.int8_ops > 0.5 * rates.fp32_ops
    assert 1e8 < rates.bytes < 1e13
    assert yardsticks.memory_mb() > 500


# -- the command --------------------------------------------------------------------------------------------------


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["estimate", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_gpu_is_estimated_and_called_unverified(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, STARTER, "--target", "jetson-orin-nano", "--entries", 1000)
    words = " ".join(out.split())
    assert code == 0
    assert "image encoder" in words
    assert "Fits as far as a bound can tell: at least 0." in words
    assert "an estimate from published figures of the Jetson Orin Nano Super" in words
    assert "unverified on hardware" in words


def test_json_carries_every_figure_with_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, STARTER, "--target", "jetson-orin-nano", "--json")
    figures = json.loads(out)
    assert code == 0
    assert (figures["target"], figures["entries"], figures["budget_ms"]) == ("jetson-orin-nano", 10_000, 33)
    assert (figures["fits_latency"], figures["fits_memory"], figures["measured_ms"]) == (True, True, None)
    assert figures["verified"] == "unverified on hardware"
    assert figures["estimated_figures"] == ["fp32_tflops"]
    assert figures["least_ms"] == pytest.approx(sum(stage["least_ms"] for stage in figures["stages"]))
    names = [stage["name"] for stage in figures["stages"]]
    assert names == ["preprocess", "image encoder", "text encoder", "search"]
    assert 0.1 < figures["stages"][1]["gmac"] < 2
    assert figures["needed_mb"] == pytest.approx(
        figures["weights_mb"] + figures["activations_mb"] + figures["index_mb"]
    )


def test_the_processor_at_hand_is_measured_beside_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, STARTER, "--target", HERE, "--entries", 500, "--budget-ms", 60_000, "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["basis"] == "measured on this machine with one thread"
    assert figures["measured_ms"] == pytest.approx(sum(stage["measured_ms"] for stage in figures["stages"]))
    assert figures["verdict"].startswith("Fits: ")
    code, out, _ = invoke(capsys, STARTER, "--target", HERE, "--entries", 500, "--budget-ms", 60_000)
    assert code == 0
    assert "real ms" in out


@pytest.mark.parametrize(
    ("extra", "unfit"),
    [(("--budget-ms", 0.0001), "fits_latency"), (("--entries", 20_000_000), "fits_memory")],
)
def test_what_cannot_fit_fails(capsys: pytest.CaptureFixture[str], extra: tuple[object, ...], unfit: str) -> None:
    code, out, _ = invoke(capsys, STARTER, "--target", "jetson-orin-nano", *extra, "--json")
    figures = json.loads(out)
    assert code == 1
    assert [name for name in ("fits_latency", "fits_memory") if not figures[name]] == [unfit]
    assert figures["verdict"].startswith("Does not fit: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((STARTER, "--target", "toaster"), "target 'toaster': expected one of cpu-x86, "),
        ((STARTER, "--target", "rtx-40", "--entries", -1), "entries: expected 0 or more, got -1; "),
        ((STARTER, "--target", "rtx-40", "--budget-ms", 0), "budget: expected more than 0 ms, got 0 ms; "),
        ((STARTER, "--target", "rtx-40", "--budget-ms", "nan"), "budget: expected more than 0 ms, got nan ms; "),
        ((STARTER, "--target", ELSEWHERE), f"target '{ELSEWHERE}': expected a linux-"),
    ],
)
def test_a_wrong_call_gets_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], sentence: str
) -> None:
    code, out, err = invoke(capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err


def test_no_bundle_there_gets_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = invoke(capsys, tmp_path / "nothing", "--target", "rtx-40")
    assert code == 1
    assert "expected a bundle folder or .zip, got nothing there" in " ".join(err.split())
