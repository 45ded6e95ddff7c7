"""Where the image encoder's time goes, node by node, by ONNX Runtime's own profile of the very session that ships."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnxruntime as ort
from machine_floors import seconds
from numpy.typing import NDArray

from edge_ravlm.export.graph_cost import workload
from edge_ravlm.export.yardsticks import Product
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends.onnxruntime import session_options
from edge_ravlm.runtime.encoders import TOKENS

_SUFFIX = "_kernel_time"
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_WARM_UP = 3


@dataclass(frozen=True)
class Node:
    """One node of the graph as ONNX Runtime runs it.

    Attributes:
        name: in ONNX Runtime's graph.
        kind: what it is there for; see ``Kinds``.
        op: its type.
        ms: median time.
        macs: multiply-adds.
        floor_ms: what they take at the rate of the product that ran in turns with it.
    """

    name: str
    kind: str
    op: str
    ms: float
    macs: int
    floor_ms: float


def profiled(
    model: bytes,
    spec: Model,
    threads: int,
    feeds: Mapping[str, NDArray[Any]],
    product: Product,
    runs: int,
    folder: Path,
) -> list[Node]:
    """Every node's time, in the order they run.

    Args:
        model: an ONNX model's bytes.
        spec: how the manifest says it is run.
        threads: CPU threads.
        feeds: its inputs.
        product: runs in turns with the model and says what its multiply-adds take at least.
        runs: how many the medians are of.
        folder: where the profile may lie.
    """
    graph = onnx.load_model_from_string(model)
    for node in graph.graph.node:
        node.name = node.name or node.output[0]  # ONNX Runtime would number it
    options = session_options(spec, threads)
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    spent = []
    for _ in range(_WARM_UP + runs):
        session.run(None, dict(feeds))
        spent.append(seconds(product.run))
    second_macs = product.operations / 2 / statistics.median(spent[_WARM_UP:])
    kinds = Kinds(graph, {name: array.shape for name, array in feeds.items()})
    found = []
    profile = Path(session.end_profiling())  # type: ignore[no-untyped-call]  # of ONNX Runtime
    for (name, op), times in _kernel_times(profile).items():
        kind, macs = kinds.of(name, op)
        ms = statistics.median(times[_WARM_UP:]) / 1e3
        found.append(Node(name, kind, op, round(ms, 4), macs, round(macs / second_macs * 1e3, 4)))
    return found


def by_kind(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """The nodes' sums by kind, those first that lose most time over their floor."""
    groups: defaultdict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        groups[node.kind].append(node)
    total = sum(node.ms for node in nodes)
    rows = []
    for kind, members in groups.items():
        ms, floor = sum(node.ms for node in members), sum(node.floor_ms for node in members)
        rows.append(
            {
                "kind": kind,
                "nodes": len(members),
                "ms": round(ms, 3),
                "share": round(ms / total, 4),
                "gmac": round(sum(node.macs for node in members) / 1e9, 4),
                "floor_ms": round(floor, 3),
                "over_floor": round(ms / floor, 2) if floor else None,
                "lost_ms": round(ms - floor, 3),
            }
        )
    return sorted(rows, key=lambda row: -row["lost_ms"])


def rows(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """The nodes, for machines."""
    return [asdict(node) for node in nodes]


class Kinds:
    """Tells what a node of ONNX Runtime's graph is there for, by the node of the given graph that it was made from.

    Convolutions are told apart by what limits them, nodes that quantize or dequantize are one kind, ``tokens`` lays out
    the cells, and what is left belongs to the outputs that it is for.

    Args:
        model: every node named.
        shapes: of the inputs.
    """

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
        sizes = {
            dim.dim_param: size
            for value in model.graph.input
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False)
            if dim.HasField("dim_param")
        }
        self._layers = {layer.name: layer for layer in workload("encoder", model, sizes).layers}
        self._weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._nodes = {node.name: node for node in model.graph.node}
        self._reached = _reached(model.graph)

    def of(self, name: str, op: str) -> tuple[str, int]:
        """A node's kind and multiply-adds.

        Args:
            name: in ONNX Runtime's graph, which holds that of the node it was made from.
            op: its type there.
        """
        origin = max((known for known in self._nodes if known in name), key=len, default=None)
        if op in _QUANTIZING or origin is None:
            return ("quantize and dequantize" if op in _QUANTIZING else "other"), 0
        node = self._nodes[origin]
        layer = self._layers.get(node.output[0])
        macs = 0 if layer is None else layer.macs
        if node.op_type == "Conv":
            return self._convolution(node, depthwise=layer is not None and layer.op == "depthwise Conv"), macs
        reached = self._reached[origin]
        if op.startswith("QLinear"):
            return "additions", macs
        return (TOKENS if TOKENS in reached else f"head of {', '.join(sorted(reached))}"), macs

    def _convolution(self, node: onnx.NodeProto, *, depthwise: bool) -> str:
        if depthwise:
            return "depthwise convolutions"
        maker = self._makers.get(node.input[1])
        _, channels, *sides = self._weights[node.input[1] if maker is None else maker.input[0]]
        if channels == 3:
            return "first convolution"
        return "pointwise convolutions" if set(sides) == {1} else "dense convolutions"


def _reached(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """The graph's outputs that depend on each node, by its name."""
    needed = {output.name: frozenset({output.name}) for output in graph.output}
    found = {}
    for node in reversed(graph.node):
        reached = frozenset().union(*(needed.get(name, frozenset()) for name in node.output))
        found[node.name] = reached
        for name in node.input:
            needed[name] = needed.get(name, frozenset()) | reached
    return found


def _kernel_times(profile: Path) -> dict[tuple[str, str], list[float]]:
    """Microseconds of each run by name and type of node."""
    times: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in msgspec.json.decode(profile.read_bytes()):
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            times[event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]].append(event["dur"])
    return dict(times)
