"""The flavour ``trt-s8`` on a small student: TensorRT takes it, and in its stand-in it is near full precision."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edge_ravlm.errors import DataError, EdgeRavlmError, MissingExtra
from edge_ravlm.export import parity
from edge_ravlm.export.engines import build
from edge_ravlm.export.judging import JudgeSet
from edge_ravlm.export.onnx_graph import image_graph
from edge_ravlm.export.quantize import trt_s8
from edge_ravlm.export.quantize.candidates import CALIBRATIONS
from edge_ravlm.export.quantize.trt_s8 import cast_first, quantize, tail
from edge_ravlm.export.students.closer import Fitted, with_closer
from edge_ravlm.export.students.image import ImageStudent, batched
from edge_ravlm.manifest import Answering, Closer, Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.targets import target

pytestmark = pytest.mark.export

QUANTIZED = ["expand", "depthwise", "project", "plain"]
"""ModelOpt leaves the stem: 12 channels are no multiple of 8."""

SEEN = 48
SHAPE = Preprocess(height=32, width=32)
RULES = Answering(image_floor=-1.0, text_floor=0.0, sibling_floor=0.0, sharpness=10.0, abstain_below=0.0)
Optimization = Literal["disable", "basic", "extended", "all"]


def embed(model: onnx.ModelProto, pictures: list[np.ndarray]) -> np.ndarray:
    """In the session that stands in for TensorRT."""
    session = open_session(model.SerializeToString(), Model(file="m", graph_optimization="disable"), threads=1)
    try:
        return session.run({"image": np.concatenate(pictures)}, ("embedding",))[0]
    finally:
        session.close()


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def convolution(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


@pytest.fixture(scope="module")
def original(small_student: ImageStudent, small_pictures: list[np.ndarray]) -> onnx.ModelProto:
    """A student as training leaves many: some channels of its depthwise layer are little more than their bias."""
    student = copy.deepcopy(small_student)
    layer = student.get_submodule("backbone.depthwise")
    with torch.no_grad():
        layer.weight[::2] *= 0.05
        layer.bias[::2] = 1.0
    student.fit_whitening(batched(small_pictures))
    return image_graph(student, SHAPE)


@pytest.fixture(scope="module")
def steps() -> list[None]:
    """One for each call of ``advance``."""
    return []


@pytest.fixture(scope="module")
def quantized(original: onnx.ModelProto, small_pictures: list[np.ndarray], steps: list[None]) -> onnx.ModelProto:
    return quantize(original, small_pictures[:SEEN], lambda: steps.append(None))


# -- near full precision ----------------------------------------------------------------------------------------------


def test_embeddings_stay_close_to_full_precision(
    original: onnx.ModelProto, quantized: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    unseen = small_pictures[SEEN:]
    cosines = parity.cosine(embed(quantized, unseen), embed(original, unseen))
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.97  # the projection in FP16 is what costs most on this small net


def test_a_closer_look_goes_on_it_and_changes_nothing_else(
    quantized: onnx.ModelProto, small_pictures: list[np.ndarray], small_student: ImageStudent
) -> None:
    query = np.ones(small_student.channels, np.float32)
    model = with_closer(quantized, Fitted(Closer(side=16, margin=1.5), query, query, 0.0))
    unseen = small_pictures[SEEN : SEEN + 4]
    np.testing.assert_array_equal(embed(model, unseen), embed(quantized, unseen))
    smaller = [cv2.resize(picture[0], (16, 16))[None] for picture in unseen]
    np.testing.assert_allclose(np.linalg.norm(embed(model, smaller), axis=1), 1, atol=1e-2)


def test_progress_counts_every_picture_twice(quantized: onnx.ModelProto, steps: list[None]) -> None:
    assert len(steps) == 2 * SEEN


def test_the_same_pictures_give_the_same_bytes_and_nothing_else_changes(
    original: onnx.ModelProto,
    quantized: onnx.ModelProto,
    small_pictures: list[np.ndarray],
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = original.SerializeToString()
    assert quantize(original, small_pictures[:SEEN]).SerializeToString() == quantized.SerializeToString()
    assert original.SerializeToString() == before
    assert capfd.readouterr() == ("", "")


# -- what TensorRT takes ----------------------------------------------------------------------------------------------


def test_every_quantized_tensor_is_symmetric_int8(quantized: onnx.ModelProto) -> None:
    """Activations with one scale, weights with one per channel, and no biases at all."""
    values, made = constants(quantized), makers(quantized)
    for node in quantized.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
            assert (values[node.input[1]] > 0).all()
            assert values[node.input[1]].dtype == np.float16
    for name in QUANTIZED:
        activation, weight, bias = convolution(quantized, name).input
        assert made[activation].op_type == made[weight].op_type == "DequantizeLinear"
        rounded = values[made[weight].input[0]]
        assert rounded.dtype == np.int8
        assert rounded.min() >= -127
        assert values[made[weight].input[1]].shape == rounded.shape[:1]
        assert values[bias].dtype == np.float16


def test_nothing_but_a_cast_reads_the_bytes(quantized: onnx.ModelProto) -> None:
    assert {node.op_type for node in quantized.graph.node if "image" in node.input} == {"Cast"}


def test_both_outputs_are_float32(quantized: onnx.ModelProto) -> None:
    kinds = {value.name: value.type.tensor_type.elem_type for value in quantized.graph.output}
    assert kinds == {"embedding": onnx.TensorProto.FLOAT, "tokens": onnx.TensorProto.FLOAT}


def test_the_oldest_runtimes_can_load_it(quantized: onnx.ModelProto) -> None:
    onnx.checker.check_model(quantized, full_check=True)
    assert [entry.domain for entry in quantized.opset_import] == [""]
    assert quantized.opset_import[0].version <= parity.OPSET_LIMIT
    assert quantized.ir_version <= parity.IR_LIMIT


def test_engines_can_be_built_of_it_for_every_gpu(quantized: onnx.ModelProto) -> None:
    """Turing's too, for which TensorRT-RTX has no matrix product in FP32."""
    found = build(quantized.SerializeToString(), "models/image.trt-s8.onnx", target("rtx-20"))
    found += build(quantized.SerializeToString(), "models/image.trt-s8.onnx", target("rtx-50"))
    chips = {chip for engine, _ in found for chip in engine.compute_capabilities}
    assert {"7.5", "8.9", "12.0"} <= chips
    for engine, _ in found:
        assert {info.name: info.dtype for info in engine.io} == {
            "image": "uint8",
            "embedding": "float32",
            "tokens": "float32",
        }


def test_nothing_of_this_machine_is_in_the_file(quantized: onnx.ModelProto) -> None:
    stripped = onnx.load_model_from_string(quantized.SerializeToString())
    del stripped.graph.initializer[:]  # random bytes spell anything
    for word in (str(Path.cwd()), tempfile.gettempdir(), "site-packages", ".py", "stack_trace"):
        assert word not in str(stripped)


# -- layers that stay in floating point -------------------------------------------------------------------------------


def test_a_layer_that_stays_in_floating_point_gives_its_agreement_back(
    hard_model: bytes, small_pictures: list[np.ndarray]
) -> None:
    """With ``expand`` in 8 bits the mean cosine would be 0.994. Of the candidates, the judge's favourite is taken."""
    model, unseen = onnx.load_model_from_string(hard_model), small_pictures[SEEN:]
    candidates: list[onnx.ModelProto] = []

    def judge(candidate: onnx.ModelProto) -> float:
        candidates.append(candidate)
        return -len(candidates)

    found = quantize(model, small_pictures[:SEEN], keep_float=["expand"], judge=judge)
    assert len(candidates) == len(CALIBRATIONS["trt-s8"])
    assert found is candidates[0]
    values, made = constants(found), makers(found)
    kept = convolution(found, "expand")
    np.testing.assert_array_equal(values[kept.input[1]], constants(model)["backbone.expand.weight"].astype(np.float16))
    for name in ("depthwise", "project", "plain"):
        assert values[made[convolution(found, name).input[1]].input[0]].dtype == np.int8
    assert parity.cosine(embed(found, unseen), embed(model, unseen)).mean() > 0.99


def test_a_layer_that_is_not_there_is_refused(original: onnx.ModelProto, small_pictures: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"layer 'stem\.9': expected .*'stem\.1' or 'plain', got no such layer"):
        quantize(original, small_pictures[:2], keep_float=["expand", "stem.9"])


# -- the gate ---------------------------------------------------------------------------------------------------------


def judged(
    model: onnx.ModelProto, found: onnx.ModelProto, pictures: list[np.ndarray], optimization: Optimization
) -> list[str]:
    """The gate's sentences."""
    rng = np.random.default_rng(1)
    memories = [picture[0] for picture in pictures]
    seen_again = [np.uint8(np.clip(m + rng.normal(0, 4, m.shape), 0, 255)) for m in memories]
    original = parity.Embedder(bytes(model.SerializeToString()), Model(file="original"), SHAPE)
    spec = Model(file="shipped", backend="tensorrt", graph_optimization=optimization)
    shipped = replace(original, model=bytes(found.SerializeToString()), spec=spec)
    figures = parity.judge(
        JudgeSet(memories, seen_again, np.arange(len(memories)), []),
        original=original,
        shipped=shipped,
        reference=original,
        texts=(np.float32(np.eye(2)),) * 2,
        rules=RULES,
        timed=False,
    )
    return parity.failures(figures, parity.Gate(), {"models/image.trt-s8.onnx": shipped.model})


def test_the_gate_lets_it_pass_in_the_session_that_stands_in(
    original: onnx.ModelProto, quantized: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    assert judged(original, quantized, small_pictures[SEEN:], "disable") == []


@pytest.mark.parametrize("optimization", ["basic", "extended", "all"])
def test_the_gate_stops_the_same_file_in_a_session_that_gets_it_wrong(
    original: onnx.ModelProto,
    quantized: onnx.ModelProto,
    small_pictures: list[np.ndarray],
    optimization: Optimization,
) -> None:
    """ONNX Runtime's optimizer quantizes the biases in FP16, where those of quiet channels overflow."""
    found = judged(original, quantized, small_pictures[SEEN:], optimization)
    assert any(sentence.startswith("cosine_mean expected at least 0.995") for sentence in found)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_casting_first_changes_no_bit(original: onnx.ModelProto, small_pictures: list[np.ndarray]) -> None:
    changed = onnx.load_model_from_string(original.SerializeToString())
    cast_first(changed.graph)
    onnx.checker.check_model(changed, full_check=True)
    readers = {node.op_type for node in original.graph.node if "image" in node.input}
    assert "Transpose" in readers
    assert {node.op_type for node in changed.graph.node if "image" in node.input} == {"Cast"}
    np.testing.assert_array_equal(embed(changed, small_pictures[:4]), embed(original, small_pictures[:4]))


def test_the_tail_is_what_follows_the_convolutions_but_for_products(original: onnx.ModelProto) -> None:
    names = set(tail(original.graph))
    kinds = {node.name: node.op_type for node in original.graph.node}
    assert {"Softmax", "ReduceL2", "Div", "Reshape"} <= {kinds[name] for name in names}
    assert {"Conv", "MatMul", "Relu", "Add"}.isdisjoint(kinds[name] for name in names)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_quantizer_that_fails_is_one_sentence(original: onnx.ModelProto) -> None:
    too_small = [np.zeros((1, 8, 8, 4), np.uint8)] * 2
    with pytest.raises(
        EdgeRavlmError, match=r"trt-s8: expected ModelOpt to finish, got .*; report this with"
    ) as caught:
        quantize(original, too_small)
    assert "\n" not in str(caught.value)


def test_a_quantizer_that_is_not_installed_is_named(
    original: onnx.ModelProto, small_pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_s8, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'package modelopt: .* pip install "\.\[export\]"'):
        quantize(original, small_pictures[:2])


def test_ctrl_c_ends_the_quantizer_and_leaves_nothing(
    original: onnx.ModelProto, small_pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop() -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(original, small_pictures[:2], stop)
    assert not list(tmp_path.iterdir())
