"""What a bundle costs at least on a device: operations, bytes and memory, read off its ONNX graphs.

The roofline (Williams, Waterman and Patterson 2009): work that takes ``2 * macs`` operations and moves ``bytes`` takes
at least ``max(2 * macs / peak, bytes / bandwidth)`` seconds. It is drawn twice:

- *at least*: a stage as a whole. Weights, inputs and outputs move once, whatever lies between stays in caches. Nothing
  that does these operations is faster, unless a cache keeps the weights from one frame to the next.
- *layer by layer*: the sum over layers, each with its own roofline, its inputs and outputs passing through memory. It
  shows what dominates; an engine whose caches hold the activations can beat it.

What a graph's layers are, ``graph_cost`` says. Nothing here measures anything: rates come from a target's profile, or
from ``yardsticks``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.export.graph_cost import Layer, Precision, Workload, workload
from edge_ravlm.manifest import Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.memory.index import CONNECTIVITY, MIN_FETCH, SCAN_ROWS, USUAL_EXPANSION
from edge_ravlm.targets import Target

FRAME = (720, 1280)
"""Height and width of the camera frames that estimates are for."""

QUESTION_TOKENS = 16
"""Length of the question that estimates are for."""

SEARCH = "search"
"""Name of the stage whose resident bytes are an index's."""


@dataclass(frozen=True)
class Rates:
    """What a device does per second at best: operations (a multiply-add is two) by precision, and bytes moved."""

    int8_ops: float
    fp16_ops: float
    fp32_ops: float
    bytes: float

    @classmethod
    def published(cls, target: Target) -> Rates:
        """A profile's figures; raises UsageError for a profile that leaves them to measurement."""
        int8, fp16, fp32, bandwidth = target.int8_tops, target.fp16_tflops, target.fp32_tflops, target.bandwidth_gb_s
        if int8 is None or fp16 is None or fp32 is None or bandwidth is None:
            raise UsageError(
                f"target '{target.name}'",
                expected="one with published figures",
                got="one that is measured",
                do="measure it on the device",
            )
        # TensorRT may run float32 as TF32, on tensor cores at half of their FP16 rate.
        return cls(int8 * 1e12, fp16 * 1e12, max(fp32, fp16 / 2) * 1e12, bandwidth * 1e9)

    def seconds(self, precision: Precision, macs: int) -> float:
        """The least that so many multiply-adds take."""
        return 2 * macs / {"int8": self.int8_ops, "fp16": self.fp16_ops, "fp32": self.fp32_ops}[precision]


@dataclass(frozen=True)
class Bound:
    """A workload under a roofline.

    Attributes:
        least_ms: nothing that does this work is faster.
        bound_by: which of the two limits that is.
        layered_ms: the sum over layers.
        op, layer: the operator type and the single layer that take most of that sum.
    """

    least_ms: float
    bound_by: Literal["compute", "bandwidth"]
    layered_ms: float
    op: str
    layer: str


def bound(work: Workload, rates: Rates) -> Bound:
    """The rooflines of a workload; see the module."""
    compute = sum(rates.seconds(layer.precision, layer.macs) for layer in work.layers)
    transfer = work.least_bytes / rates.bytes
    by_op: defaultdict[str, float] = defaultdict(float)
    by_layer: defaultdict[str, float] = defaultdict(float)
    for layer in work.layers:
        spent = max(rates.seconds(layer.precision, layer.macs), layer.bytes / rates.bytes)
        by_op[layer.op] += spent
        by_layer[layer.name] += spent
    return Bound(
        max(compute, transfer) * 1e3,
        "compute" if compute >= transfer else "bandwidth",
        sum(by_layer.values()) * 1e3,
        max(by_op, key=by_op.__getitem__, default=""),
        max(by_layer, key=by_layer.__getitem__, default=""),
    )


@dataclass(frozen=True)
class Stage:
    """One stage of answering under a target's roofline; bounds are None where the profile says nothing about its place.

    Attributes:
        name: preprocess, image encoder, text encoder or search.
        gmac: multiply-adds, in 1e9.
        least_mb, layered_mb: what moves at least, and layer by layer.
        least_ms, bound_by, layered_ms, op, layer: see ``Bound``.
        measured_ms: median of the real thing on the machine at hand.
    """

    name: str
    gmac: float
    least_mb: float
    layered_mb: float
    least_ms: float | None
    bound_by: str
    layered_ms: float | None
    op: str
    layer: str
    measured_ms: float | None


@dataclass(frozen=True)
class Estimate:
    """Whether a bundle can meet a budget on a target.

    Attributes:
        target: the profile's name.
        device: what its figures are for.
        flavor: quantization flavour whose graphs were read; the target's own if the bundle has it.
        entries: memories searched among.
        verified: whether the project's tests run on such a device.
        estimated_figures: figures of the profile that its maker does not publish.
        stages: in the order they run, for the first question about one frame.
        least_ms: sum of the stages' bounds.
        measured_ms: sum of what was measured, a bound standing in for a stage that was not; None if none was.
        budget_ms: what is allowed.
        weights_mb, activations_mb, index_mb: what has to be in the device's memory at least.
        memory_mb: what it has.
    """

    target: str
    device: str
    flavor: str
    entries: int
    verified: str
    estimated_figures: tuple[str, ...]
    stages: tuple[Stage, ...]
    least_ms: float
    measured_ms: float | None
    budget_ms: float
    weights_mb: float
    activations_mb: float
    index_mb: float
    memory_mb: float

    @property
    def needed_mb(self) -> float:
        """Memory needed at least."""
        return self.weights_mb + self.activations_mb + self.index_mb

    @property
    def fits_latency(self) -> bool:
        """By measurement where there is one; else False means that it cannot, True that the bound leaves room."""
        return (self.least_ms if self.measured_ms is None else self.measured_ms) <= self.budget_ms

    @property
    def fits_memory(self) -> bool:
        """False means that it cannot."""
        return self.needed_mb <= self.memory_mb

    def verdict(self) -> str:
        """One sentence."""
        fits = "Fits" if self.measured_ms is not None else "Fits as far as a bound can tell"
        verdict = fits if self.fits_latency and self.fits_memory else "Does not fit"
        least = f"at least {self.least_ms:.3g}"
        latency = least if self.measured_ms is None else f"{self.measured_ms:.3g} measured ({least})"
        slowest = max(self.stages, key=lambda stage: stage.measured_ms or stage.least_ms or 0.0)
        return (
            f"{verdict}: {latency} of {self.budget_ms:g} ms and at least "
            f"{self.needed_mb:.0f} of {self.memory_mb:.0f} MB; most of the time goes to the {slowest.name}, bound by "
            f"{slowest.bound_by} ({slowest.op})."
        )

    def summary(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {
            **asdict(self),
            "fits_latency": self.fits_latency,
            "fits_memory": self.fits_memory,
            "needed_mb": self.needed_mb,
            "verdict": self.verdict(),
        }


def flavor_for(bundle: Bundle, target: Target) -> str:
    """The flavour whose graphs tell what the target will do: its own, or another where it is not exported yet."""
    flavors = bundle.manifest.flavors
    return target.flavor if target.flavor in flavors else next(iter(flavors))


def workloads(bundle: Bundle, flavor: str, entries: int) -> list[Workload]:
    """The stages of answering the first question about one frame.

    Args:
        bundle: an opened bundle.
        flavor: which of its quantization flavours.
        entries: memories to search among.
    """
    manifest, models = bundle.manifest, bundle.manifest.flavor(flavor)
    shape = manifest.preprocess
    text = workload("text encoder", _model(bundle, models.text), {"tokens": QUESTION_TOKENS})
    return [
        preprocessing(FRAME, shape),
        # The first look: a closer one is dropped where the budget does not allow it.
        workload("image encoder", _model(bundle, models.image), {"h": shape.height, "w": shape.width}),
        replace(text, on_host=models.text.backend == "onnxruntime"),
        searching(entries, (manifest.text_space.dim, manifest.image_space.dim)),
    ]


def estimate(
    target: Target,
    works: Sequence[Workload],
    rates: Rates,
    *,
    flavor: str,
    entries: int,
    memory_mb: float,
    budget_ms: float,
    measured_ms: Mapping[str, float] | None = None,
) -> Estimate:
    """Put workloads under a target's roofline.

    Args:
        target: whose figures the rates are.
        works: the stages, in the order they run.
        rates: published, or measured on the machine at hand.
        flavor: whose graphs the workloads were read from.
        entries: memories that they search among.
        memory_mb: what there is for models and index.
        budget_ms: from the frame's capture to the answer.
        measured_ms: medians by name of stage, where they were measured.
    """
    here = [work for work in works if not (target.discrete and work.on_host)]
    stages = [_stage(work, rates if work in here else None, (measured_ms or {}).get(work.name)) for work in works]
    return Estimate(
        target=target.name,
        device=target.device,
        flavor=flavor,
        entries=entries,
        verified=target.verified,
        estimated_figures=target.estimated,
        stages=tuple(stages),
        least_ms=sum(stage.least_ms or 0.0 for stage in stages),
        measured_ms=sum(stage.measured_ms or stage.least_ms or 0.0 for stage in stages) if measured_ms else None,
        budget_ms=budget_ms,
        weights_mb=sum(work.resident_bytes for work in here if work.name != SEARCH) / 1e6,
        activations_mb=sum(work.activation_bytes for work in here) / 1e6,
        index_mb=sum(work.resident_bytes for work in here if work.name == SEARCH) / 1e6,
        memory_mb=memory_mb,
    )


def _stage(work: Workload, rates: Rates | None, measured_ms: float | None) -> Stage:
    under = bound(work, rates) if rates else None
    return Stage(
        work.name,
        work.macs / 1e9,
        work.least_bytes / 1e6,
        work.layer_bytes / 1e6,
        under.least_ms if under else None,
        under.bound_by if under else "",
        under.layered_ms if under else None,
        under.op if under else "",
        under.layer if under else "",
        measured_ms,
    )


def _model(bundle: Bundle, model: Model) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(bundle.read(model.file))
    except DecodeError:
        raise BundleError(
            bundle.where, expected=f"an ONNX model in {model.file}", got="other bytes", do="export it again"
        ) from None


def preprocessing(frame: tuple[int, int], preprocess: Preprocess) -> Workload:
    """Scaling one frame of (height, width): every pixel is read, the encoder's input is written."""
    read, written = math.prod(frame) * 3, preprocess.height * preprocess.width * 3
    layer = Layer("resize", "resize", 0, "int8", 0, read, written)
    return Workload("preprocess", (layer,), read + written, 0, read + written, on_host=True)


def searching(entries: int, dims: Sequence[int]) -> Workload:
    """One search among the entries, in the first field; the index of every field has to be in memory.

    Up to ``SCAN_ROWS`` entries all float16 rows are scored. Above, the graph is walked: at least the vector and the
    neighbours of every node that the search keeps in view are read, and the best are scored again in float16.

    Args:
        entries: how many memories.
        dims: length of the vectors of each field.
    """
    dim, walked = dims[0], entries > SCAN_ROWS
    scored = min(entries, MIN_FETCH) if walked else entries
    read = scored * dim * 2 + (USUAL_EXPANSION * _graph_node_bytes(dim) if walked else 0)
    macs = (scored + (USUAL_EXPANSION if walked else 0)) * dim
    layer = Layer("index", "search", macs, "fp32", 0, read, 0)
    resident = sum(index_bytes(entries, dim) for dim in dims)
    return Workload(SEARCH, (layer,), read, resident, 0, on_host=True)


def index_bytes(entries: int, dim: int) -> int:
    """The files of one field: ids and float16 rows, and above ``SCAN_ROWS`` entries USearch's graph over INT8 rows."""
    rows = entries * (8 + 2 * dim)
    return rows if entries <= SCAN_ROWS else rows + entries * _graph_node_bytes(dim)


def _graph_node_bytes(dim: int) -> int:
    """A node: key, level twice, up to 2 M neighbours, M more on each of 1 / (M - 1) upper levels; and its INT8 row."""
    level, upper = 4 + 4 * 2 * CONNECTIVITY, 4 + 4 * CONNECTIVITY
    return round(8 + 2 + 2 + level + upper / (CONNECTIVITY - 1)) + dim
