"""PyTorch to ONNX: the same numbers, loadable by the oldest runtimes, and nothing of this machine in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edge_ravlm.export import parity
from edge_ravlm.export.onnx_graph import fold_padding, image_graph, prune, teacher_graph
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.preprocess import Preprocess

pytestmark = pytest.mark.export


def run(model: onnx.ModelProto | bytes, image: np.ndarray, *names: str) -> list[np.ndarray]:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return list(session.run(names or None, {session.get_inputs()[0].name: image}))


# -- the student's graph ------------------------------------------------------------------------------------------


def test_the_graph_computes_what_the_student_does(
    small_student: ImageStudent, small_model: bytes, small_pictures: list[np.ndarray]
) -> None:
    pictures = np.concatenate(small_pictures[:5])
    with torch.no_grad():
        expected = small_student(torch.from_numpy(pictures))
    embedding, tokens = run(small_model, pictures, "embedding", "tokens")
    assert (embedding.shape, tokens.shape) == ((5, 16), (5, 64, 24))
    np.testing.assert_allclose(embedding, expected[0], atol=2e-5)
    np.testing.assert_allclose(tokens, expected[1], atol=2e-5)
    np.testing.assert_allclose(run(small_model, pictures[:1], "embedding")[0], embedding[:1], atol=2e-5)


def test_the_oldest_runtimes_can_load_it(small_graph: onnx.ModelProto) -> None:
    (opset,) = [entry.version for entry in small_graph.opset_import if entry.domain == ""]
    assert opset <= parity.OPSET_LIMIT
    assert small_graph.ir_version <= parity.IR_LIMIT


def test_nothing_of_this_machine_is_in_the_file(small_graph: onnx.ModelProto) -> None:
    del small_graph.graph.initializer[:]  # random bytes spell anything
    text = str(small_graph)
    for word in (str(Path.cwd()), "site-packages", ".py", "stack_trace", "metadata_props", "SmallBackbone"):
        assert word not in text


def test_convolutions_are_named_after_their_modules(small_graph: onnx.ModelProto) -> None:
    names = [node.name for node in small_graph.graph.node if node.op_type == "Conv"]
    assert names == ["stem.1", "expand", "depthwise", "project", "plain"]


def test_padding_in_front_of_the_stem_costs_no_node(small_graph: onnx.ModelProto) -> None:
    assert "Pad" not in {node.op_type for node in small_graph.graph.node}
    stem = next(node for node in small_graph.graph.node if node.op_type == "Conv")
    assert next(a.ints for a in stem.attribute if a.name == "pads") == [0, 0, 1, 1]


def test_the_same_student_gives_the_same_bytes(small_student: ImageStudent, small_model: bytes) -> None:
    again = image_graph(small_student, Preprocess(height=32, width=32))
    assert again.SerializeToString() == small_model


def test_a_teacher_can_be_timed_as_a_graph() -> None:
    class Teacher:
        name, side, dim, sources = "mean", 16, 3, ()

        def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            grid = pixels.float().flatten(1, 2)
            return torch.nn.functional.normalize(grid.mean(1), dim=1), grid

    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    (embedding,) = run(teacher_graph(Teacher(), Preprocess(height=16, width=16)), picture, "embedding")
    mean = picture.reshape(-1, 3).mean(0)
    np.testing.assert_allclose(embedding[0], mean / np.linalg.norm(mean), atol=1e-5)


# -- folding ------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 9, 7)).astype(np.float32)


def padded(
    amounts: list[int], own: list[int] | None = None, value: float | None = 0.0, mode: str = "constant", uses: int = 1
) -> onnx.ModelProto:
    """Pad, then one or two convolutions that read it."""
    constants = {
        "amounts": np.array(amounts, np.int64),
        "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b": RNG.normal(size=4).astype(np.float32),
    }
    inputs = ["x", "amounts"]
    if value is not None:
        constants["value"] = np.float32(value)
        inputs.append("value")
    pads = {} if own is None else {"pads": own}
    outputs = [f"y{i}" for i in range(uses)]
    nodes = [helper.make_node("Pad", inputs, ["padded"], mode=mode)]
    nodes += [helper.make_node("Conv", ["padded", "w", "b"], [name], strides=[2, 1], **pads) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 9, 7])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4, None, None]) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def folds(model: onnx.ModelProto) -> bool:
    """Folds, checks that nothing else changed, and says whether the Pad has gone."""
    expected = run(model, X)
    fold_padding(model.graph)
    onnx.checker.check_model(model, full_check=True)
    for found, wanted in zip(run(model, X), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    return "Pad" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("amounts", [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 2, 0, 0, 3, 0], [0] * 8])
@pytest.mark.parametrize("own", [None, [1, 0, 2, 1]])
@pytest.mark.parametrize("value", [0.0, None])
def test_zero_padding_moves_into_the_convolution(
    amounts: list[int], own: list[int] | None, value: float | None
) -> None:
    assert folds(padded(amounts, own, value))


def test_padding_that_two_convolutions_read_moves_into_both() -> None:
    assert folds(padded([0, 0, 1, 0, 0, 0, 0, 1], uses=2))


@pytest.mark.parametrize(
    "model",
    [
        padded([0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
        padded([0, 0, 1, 1, 0, 0, 1, 1], mode="edge", value=None),
        padded([1, 0, 1, 1, 0, 0, 1, 1]),
        padded([0, 0, -1, 0, 0, 0, 0, 0]),
    ],
    ids=["not zero", "edge", "more pictures", "a crop"],
)
def test_other_padding_stays(model: onnx.ModelProto) -> None:
    assert not folds(model)


def test_pruning_keeps_what_an_output_needs() -> None:
    model = padded([0, 0, 1, 0, 0, 0, 0, 1], uses=2)
    (expected, _) = run(model, X)
    del model.graph.output[1]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "nobody"))
    prune(model.graph)
    assert [node.output[0] for node in model.graph.node] == ["padded", "y0"]
    assert {tensor.name for tensor in model.graph.initializer} == {"amounts", "value", "w", "b"}
    np.testing.assert_array_equal(run(model, X)[0], expected)
