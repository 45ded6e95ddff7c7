"""PyTorch to ONNX, within what the oldest supported runtimes load (ONNX Runtime 1.23, TensorRT 10.3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.preprocess import Preprocess

OPSET, IR_VERSION = 18, 10

TINY = 1e-12
"""Least length that a vector is divided by."""

_QUERY = ".query"
"""How the names of constants end that cells are pooled by."""


def image_graph(student: ImageStudent, preprocess: Preprocess) -> onnx.ModelProto:
    """The student as ONNX: input ``image`` uint8 [n, h, w, 3], outputs ``embedding`` and ``tokens``.

    Its convolutions are named after the backbone's modules, so that a report and a recipe can name them. What follows
    the cells is put on by hand: traced it takes twice as many nodes, and no head could share its pooling.
    """
    example = torch.zeros((2, preprocess.height, preprocess.width, 3), dtype=torch.uint8)
    model = _of_pictures(student.eval(), example)
    graph = model.graph
    embedding, tokens = graph.output
    del graph.output[:]
    graph.output.append(tokens)
    fold_padding(graph)  # and prunes
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        conv.name = conv.input[1].removeprefix("backbone.").removesuffix(".weight")
    weights = {name: parameter.detach().numpy() for name, parameter in student.named_parameters(recurse=False)}
    _, features = pool(graph, weights.pop("query"))
    make = onnx.helper.make_node
    nodes = [make("Sub", [features, "centre"], ["centred"]), make("MatMul", ["centred", "projection"], ["projected"])]
    append(graph, nodes, weights)
    append_unit_rows(graph, "projected", embedding.name)
    graph.output.insert(0, embedding)
    onnx.checker.check_model(model, full_check=True)
    return model


def picture_graph(module: nn.Module, side: int, outputs: Sequence[str]) -> onnx.ModelProto:
    """Any network over ``image`` uint8 [n, side, side, 3] as ONNX."""
    return _of_pictures(module.eval(), torch.zeros((2, side, side, 3), dtype=torch.uint8), outputs)


def teacher_graph(teacher: ImageTeacher, preprocess: Preprocess) -> bytes:
    """A teacher as ONNX with the input ``image``, to time it as a user would run it."""
    example = torch.zeros((2, preprocess.height, preprocess.width, 3), dtype=torch.uint8)
    return bytes(_of_pictures(_Embedding(teacher).eval(), example).SerializeToString())


class _Embedding(nn.Module):
    """A teacher that can be traced."""

    def __init__(self, teacher: ImageTeacher) -> None:
        super().__init__()
        self._teacher = teacher

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 BGR [n, h, w, 3] -> embedding, tokens."""
        return self._teacher.embed(pixels)


def traced(
    module: nn.Module, example: tuple[torch.Tensor, ...], inputs: Sequence[str], outputs: Sequence[str], dynamic: Any
) -> onnx.ModelProto:
    """A network as ONNX, without traces of the machine that exported it.

    Args:
        module: in the mode that it is to be exported in.
        example: its inputs; no tensor twice, for two inputs that are one tensor are traced as one.
        inputs: their names.
        outputs: the outputs' names.
        dynamic: sizes that may change, as ``torch.export`` takes them.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", r".*treespec, LeafSpec", FutureWarning)  # torch 2.13 warns of itself
        warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)  # inputs share sizes
        program = torch.onnx.export(
            module,
            example,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is only for dynamo=False
    model = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]  # stack traces with paths of the machine that exported
        part.doc_string = ""
    return model


def _of_pictures(
    module: nn.Module, example: torch.Tensor, outputs: Sequence[str] = ("embedding", "tokens")
) -> onnx.ModelProto:
    return traced(module, (example,), ("image",), outputs, ({0: torch.export.Dim("n")},))


def append(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], constants: Mapping[str, NDArray[Any]]) -> None:
    """Put nodes, which are named after their first outputs, and their constants on a graph."""
    for node in nodes:
        node.name = node.output[0]
        graph.node.append(node)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()
    )


def append_unit_rows(graph: onnx.GraphProto, source: str, target: str) -> None:
    """Put the rows of ``source``, float32 [n, d], on a graph at length 1, as ``target``."""
    make, length, divisor, axis, tiny = (
        onnx.helper.make_node,
        *(f"{source}.{part}" for part in ("length", "divisor", "axis", "tiny")),
    )
    nodes = [
        make("ReduceL2", [source, axis], [length], keepdims=1),
        make("Max", [length, tiny], [divisor]),
        make("Div", [source, divisor], [target]),
    ]
    append(graph, nodes, {axis: np.array([1]), tiny: np.array([TINY], np.float32)})


def pool(graph: onnx.GraphProto, query: NDArray[np.float32]) -> tuple[str, str]:
    """Pool the output ``tokens`` as ``students.image.pooled`` does; whoever pools by the same query shares the nodes.

    Args:
        graph: it is put on.
        query: float32 [channels].

    Returns:
        Names of the cells' weights, float32 [n, cells, 1], and of the pooled features, float32 [n, channels].
    """
    known = {tensor.name.removesuffix(_QUERY): tensor for tensor in graph.initializer if tensor.name.endswith(_QUERY)}
    for name, tensor in known.items():
        other = onnx.numpy_helper.to_array(tensor)
        if other.dtype == query.dtype and np.array_equal(other[:, 0], query):
            return f"{name}.weights", f"{name}.features"
    name, make = f"pooling{len(known)}", onnx.helper.make_node
    nodes = [
        make("MatMul", ["tokens", f"{name}{_QUERY}"], [f"{name}.products"]),
        make("Softmax", [f"{name}.products"], [f"{name}.weights"], axis=1),
        make("Transpose", [f"{name}.weights"], [f"{name}.row"], perm=[0, 2, 1]),
        make("MatMul", [f"{name}.row", "tokens"], [f"{name}.mean"]),
        make("Flatten", [f"{name}.mean"], [f"{name}.sum"]),
    ]
    append(graph, nodes, {f"{name}{_QUERY}": query[:, None]})
    append_unit_rows(graph, f"{name}.sum", f"{name}.features")
    return f"{name}.weights", f"{name}.features"


def free_sides(model: onnx.ModelProto) -> None:
    """Let an image graph take pictures of any size: what it was traced with is only written down in two places."""
    graph = model.graph
    for dim, name in zip(graph.input[0].type.tensor_type.shape.dim[1:3], ("h", "w"), strict=True):
        dim.dim_param = name
    tokens = next(output for output in graph.output if output.name == "tokens")
    shape = tokens.type.tensor_type.shape.dim
    channels = shape[2].dim_value
    shape[1].dim_param = "cells"
    del graph.value_info[:]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    cells = [node for node in graph.node if node.op_type == "Reshape" and _is_of_cells(constants, node, channels)]
    if len(cells) != 1:
        raise ValueError(f"{len(cells)} nodes make cells of a grid, one was expected")
    name = f"{cells[0].input[1]}_of_any_size"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, channels, -1]), name))
    cells[0].input[1] = name
    del cells[0].attribute[:]  # ``allowzero`` would make an empty side of what is to be copied
    prune(graph)
    onnx.checker.check_model(model, full_check=True)


def _is_of_cells(constants: Mapping[str, onnx.TensorProto], node: onnx.NodeProto, channels: int) -> bool:
    shape = constants.get(node.input[1])
    return shape is not None and onnx.numpy_helper.to_array(shape).tolist()[1:2] == [channels]


def fold_padding(graph: onnx.GraphProto) -> None:
    """Move zero ``Pad`` nodes in front of convolutions into the convolutions' own ``pads``."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        pad = makers.get(conv.input[0])
        if pad is None or (amounts := _zeros_around(pad, constants)) is None:
            continue
        own = next((attribute for attribute in conv.attribute if attribute.name == "pads"), None)
        if own is not None:
            amounts = [before + more for before, more in zip(own.ints, amounts, strict=True)]
            conv.attribute.remove(own)
        conv.attribute.append(onnx.helper.make_attribute("pads", amounts))
        conv.input[0] = pad.input[0]
    prune(graph)


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs."""
    needed = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)


def _zeros_around(pad: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> list[int] | None:
    """Top, left, bottom, right, if constant zeros there are all that the node adds; else None."""
    inputs = [constants.get(name) for name in pad.input[1:] if name]
    if pad.op_type != "Pad" or any(a.name == "mode" and a.s != b"constant" for a in pad.attribute):
        return None
    if any(given is None for given in inputs):
        return None
    amounts, *value = (np.asarray(given) for given in inputs)
    if len(amounts) != 8 or amounts[[0, 1, 4, 5]].any() or amounts.min() < 0 or any(v.any() for v in value):
        return None
    found: list[int] = amounts[[2, 3, 6, 7]].tolist()
    return found
