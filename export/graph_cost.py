"""What a model does and touches, layer by layer, read off its ONNX graph: multiply-adds, bytes, memory alive.

A layer is an operator together with the element-wise ones behind it, as engines fuse them. Multiply-adds are those of
the direct algorithms of convolution and matrix product; other operators count none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from edge_ravlm.errors import BundleError

Precision = Literal["int8", "fp16", "fp32"]

# fmt: off
POINTWISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Expand", "Gelu", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Pow", "PRelu", "QuantizeLinear", "Reciprocal",
    "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Where",
})
# fmt: on
"""Operators that join the layer that computes their input."""

VIEWS = frozenset({"DequantizeLinear", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that move nothing: the bytes in memory stay those of their first input."""


@dataclass(frozen=True)
class Layer:
    """One operator and the element-wise ones fused behind it.

    Attributes:
        name: of its output, as the graph calls it.
        op: operator type; depthwise convolutions are told apart.
        macs: multiply-adds.
        precision: of its operands.
        weight_bytes: constants that it reads; of a look-up table only the rows looked up.
        read_bytes, written_bytes: activations from and to other layers.
    """

    name: str
    op: str
    macs: int
    precision: Precision
    weight_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        """All that passes through memory if no cache holds it."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


@dataclass(frozen=True)
class Workload:
    """One stage's work for one frame.

    Attributes:
        name: of the stage.
        layers: in the order they run.
        boundary_bytes: what goes in and comes out.
        resident_bytes: weights, or pages of an index, that have to be in memory.
        activation_bytes: the most that is alive at a time between layers, inputs and outputs included.
        on_host: whether it runs beside a GPU that has memory of its own.
    """

    name: str
    layers: tuple[Layer, ...]
    boundary_bytes: int
    resident_bytes: int
    activation_bytes: int
    on_host: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def least_bytes(self) -> int:
        """What has to move however well caches work."""
        return self.boundary_bytes + sum(layer.weight_bytes for layer in self.layers)

    @property
    def layer_bytes(self) -> int:
        """What moves if every layer's inputs and outputs pass through memory."""
        return sum(layer.bytes for layer in self.layers)


def workload(name: str, model: onnx.ModelProto, dims: Mapping[str, int] | None = None) -> Workload:
    """One run of a model.

    Args:
        name: of the stage.
        model: any ONNX model; Q/DQ pairs say what runs in INT8.
        dims: sizes of named dynamic dimensions; those without one are 1.

    Raises:
        BundleError: shapes cannot be inferred, for instance behind an operator of another domain.
    """
    graph = _Graph(model, dims or {})
    layers = graph.layers()
    return Workload(
        name,
        tuple(map(graph.describe, layers)),
        graph.bytes(graph.inputs | graph.outputs),
        graph.bytes(graph.weights()),
        graph.peak_bytes(layers),
    )


@dataclass(frozen=True)
class _Tensor:
    dims: tuple[int, ...]
    type: int

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def item_bytes(self) -> int:
        return onnx.helper.tensor_dtype_to_np_dtype(self.type).itemsize


@dataclass(frozen=True)
class _Group:
    """A layer: its nodes, the activations that it takes from outside, and those that it leaves for others."""

    nodes: tuple[onnx.NodeProto, ...]
    reads: frozenset[str]
    writes: frozenset[str]


class _Graph:
    """An ONNX graph with every shape known, constants folded and views seen through."""

    def __init__(self, model: onnx.ModelProto, dims: Mapping[str, int]) -> None:
        graph = _with_shapes(model, dims).graph
        self._tensors = {t.name: _Tensor(tuple(t.dims), t.data_type) for t in graph.initializer}
        for value in [*graph.input, *graph.output, *graph.value_info]:
            kind = value.type.tensor_type
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
                sizes = tuple(dim.dim_value for dim in kind.shape.dim)
                self._tensors.setdefault(value.name, _Tensor(sizes, kind.elem_type))
        self._constants = {tensor.name for tensor in graph.initializer}
        self._alias: dict[str, str] = {}
        self._nodes = [node for node in graph.node if not self._is_free(node)]
        self.inputs = {value.name for value in graph.input} - self._constants
        self.outputs = {self._stored(value.name) for value in graph.output}

    def layers(self) -> list[_Group]:
        """Nodes in order, element-wise ones joined to the layer that makes the latest of their inputs."""
        groups: list[list[onnx.NodeProto]] = []
        made_in: dict[str, int] = {}
        for node in self._nodes:
            place = max((made_in[name] for name in self._activations(node) if name in made_in), default=-1)
            if node.op_type not in POINTWISE or place < 0:
                groups.append([])
                place = len(groups) - 1
            groups[place].append(node)
            made_in.update(dict.fromkeys(node.output, place))
        made = [{name for node in nodes for name in node.output} for nodes in groups]
        reads = [set().union(*map(self._activations, groups[i])) - made[i] for i in range(len(groups))]
        wanted = self.outputs.union(*reads)
        return [
            _Group(tuple(n), frozenset(r), frozenset(m & wanted)) for n, r, m in zip(groups, reads, made, strict=True)
        ]

    def describe(self, group: _Group) -> Layer:
        """The figures of one layer; it is called after the node that multiplies most."""
        main = max(group.nodes, key=self._macs)
        return Layer(
            main.output[0],
            "depthwise Conv" if self._is_depthwise(main) else main.op_type,
            sum(map(self._macs, group.nodes)),
            self._precision(main),
            sum(map(self._weight_bytes, group.nodes)),
            self.bytes(group.reads),
            self.bytes(group.writes),
        )

    def peak_bytes(self, groups: Sequence[_Group]) -> int:
        """The most that is alive at once: each tensor from the layer that makes it to the last one that reads it."""
        born, dies = dict.fromkeys(self.inputs, 0), dict.fromkeys(self.inputs, 0)
        for place, group in enumerate(groups):
            born.update(dict.fromkeys(group.writes, place))
            dies.update(dict.fromkeys(group.reads | group.writes, place))
        dies.update(dict.fromkeys(self.outputs, len(groups)))
        alive = ({name for name in born if born[name] <= place <= dies[name]} for place in range(len(groups)))
        return max(map(self.bytes, alive), default=0)

    def weights(self) -> set[str]:
        """The constants that are needed at run time, as they are stored."""
        return {self._stored(name) for node in self._nodes for name in node.input if name} & self._constants

    def bytes(self, names: Iterable[str]) -> int:
        """Size in memory, together."""
        tensors = map(self._tensor, names)
        return sum(tensor.size * tensor.item_bytes for tensor in tensors)

    def _is_free(self, node: onnx.NodeProto) -> bool:
        """Whether it costs nothing at run time: it is a view of its input, or works on constants alone."""
        if node.op_type in VIEWS:
            self._alias[node.output[0]] = node.input[0]
            return True
        if node.op_type != "Shape" and self._activations(node):
            return False
        self._constants.update(node.output)
        return True

    def _stored(self, name: str) -> str:
        """The tensor whose bytes in memory these are."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def _activations(self, node: onnx.NodeProto) -> set[str]:
        return {self._stored(name) for name in node.input if name} - self._constants

    def _weight_bytes(self, node: onnx.NodeProto) -> int:
        read = {self._stored(name) for name in node.input if name} & self._constants
        if node.op_type == "Gather" and self._stored(node.input[0]) in read:  # of a table, the rows looked up
            return self._tensor(node.output[0]).size * self._tensor(self._stored(node.input[0])).item_bytes
        return self.bytes(read)

    def _macs(self, node: onnx.NodeProto) -> int:
        """Of the direct algorithm."""
        match node.op_type:
            case "Conv" | "ConvInteger":
                return self._tensor(node.output[0]).size * math.prod(self._tensor(node.input[1]).dims[1:])
            case "ConvTranspose":
                return self._tensor(node.input[0]).size * math.prod(self._tensor(node.input[1]).dims[1:])
            case "MatMul" | "MatMulInteger":
                return self._tensor(node.output[0]).size * self._tensor(node.input[0]).dims[-1]
            case "Gemm":
                side = 0 if _attribute(node, "transA") else 1
                return self._tensor(node.output[0]).size * self._tensor(node.input[0]).dims[side]
        return 0

    def _is_depthwise(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" and _attribute(node, "group") > 1 == self._tensor(node.input[1]).dims[1]

    def _precision(self, node: onnx.NodeProto) -> Precision:
        operands = [self._tensor(self._stored(name)) for name in node.input[:2] if name]
        if all(operand.item_bytes == 1 for operand in operands):
            return "int8"
        return "fp16" if self._tensor(node.output[0]).item_bytes == 2 else "fp32"

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise _no_shapes(f"none for '{name}'")
        return self._tensors[name]


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _with_shapes(model: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.ModelProto:
    """A copy whose inputs have fixed sizes, and every other tensor the size that follows from them."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # sizes noted for the dynamic model
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = dims.get(dim.dim_param, 1)
    try:
        return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _no_shapes(str(error).splitlines()[0]) from None


def _no_shapes(got: str) -> BundleError:
    do = "export it again with standard ONNX operators"
    return BundleError("model", expected="a shape for every tensor", got=got, do=do)
