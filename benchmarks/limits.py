"""How far from its floor is each stage of an answer, on this machine?

    python benchmarks/limits.py --json              [--quick]

- ``gemm_gop_s``: operations per second (1e9, a multiply-add is two) of uint8 x int8 -> int32 and of float32 matrix
  products in ONNX Runtime, with the product's session options, the best of several large shapes.
- ``bandwidth_gb_s``: of a buffer far beyond the caches. ``page_faults``: what the first touch of a page costs.
- ``encoder``: one look of the shipped image encoder, all outputs, two threads, in the library that is faster here
  (``backend``; OpenVINO has to be installed to be tried). ``encoder_over_floor`` is its median
  over the time that its multiply-adds take at the INT8 rate with as many threads. Encoder and matrix product run in
  turns; the ratio is that of the medians of each round, and the median over rounds: the machine's speed changes by up
  to two times within minutes. The aim is 1.8 or less.
- ``kinds``, ``layers``: ONNX Runtime's profile of the same model, by what a node is for and node by node;
  ``lost_ms`` is what a kind takes beyond its multiply-adds at that rate.
- ``stages``: every stage of a 720p frame's answer under the roofline of these rates, counted by ``export/roofline.py``.
  Stages that fit into the caches can be below a floor made of memory bandwidth.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import encoder_layers
import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from common import Bystanders, setting, setting_line, warn_of_company
from machine_floors import KINDS, bandwidth_gb_s, fastest_product, page_faults, rate, seconds
from memory import data, scale
from numpy.typing import NDArray
from synthetic import QUESTION, TAUGHT_EACH, TEXTS, pictures, teach

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.export.graph_cost import Layer, Workload, workload
from edge_ravlm.export.roofline import FRAME, Rates, bound, preprocessing, searching
from edge_ravlm.export.yardsticks import Product
from edge_ravlm.frames import Frame
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends.choice import open_fastest, settle
from edge_ravlm.runtime.bench.report import figure_rows
from edge_ravlm.runtime.encoders import EMBEDDING, ImageEncoder
from edge_ravlm.runtime.fusion.decoder import FusionDecoder
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.memory import Memory
from edge_ravlm.runtime.opening import open_memory
from edge_ravlm.runtime.pipeline import Ravlm

FLAVOR, THREADS = "cpu-u8", 2

AIM = 1.8
"""Most that the encoder may take over its INT8 floor."""

_BUDGET_MS = 10_000.0
_REST_S = 0.01
_WARM_UP = 5
_SHOWN = 12


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        repeats: runs that the best rate is taken of.
        rounds, looks: rounds of encoder and matrix product, and how often each runs in one.
        buffer: bytes of the buffer that is read and copied.
        pages: first touched, of each kind.
        frames: answered, for the stages.
        entries: memories that are searched.
    """

    repeats: int = 30
    rounds: int = 30
    looks: int = 10
    buffer: int = 512_000_000
    pages: int = 32_768
    frames: int = 100
    entries: int = 8_000


QUICK = Size(repeats=3, rounds=4, looks=3, buffer=128_000_000, pages=2_048, frames=6, entries=2_000)


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it runs; not to be quoted")
    arguments = parser.parse_args()
    try:
        found = measure(arguments.quick)
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    warn_of_company(found["others_cpu_share"])
    if arguments.json:
        say_json(found)
    else:
        _show(found)
    return 0


def measure(quick: bool = False) -> dict[str, Any]:
    """Everything that the module names, and the setting it was taken in."""
    size = QUICK if quick else Size()
    cv2.setNumThreads(THREADS)
    bundle, others = Bundle.open(STARTER), Bystanders()
    with tempfile.TemporaryDirectory(prefix="edge-ravlm-limits-") as scratch, progress("limits", 5) as advance:
        folder = Path(scratch)
        gemm = gemm_gop_s(size.repeats)
        advance()
        bandwidth = {_threads(n): bandwidth_gb_s(size.buffer, n, max(2, size.repeats // 5)) for n in (1, THREADS)}
        faults = page_faults(size.pages, folder)
        advance()
        product = fastest_product("int8", THREADS, size.repeats)
        image = Encoder.of(bundle)
        encoder = encoder_over_floor(bundle, image, product, size.rounds, size.looks)
        advance()
        nodes = encoder_layers.profiled(
            image.model, image.spec, THREADS, image.feeds, product, size.rounds * size.looks, folder
        )
        advance()
        both = _threads(THREADS)
        int8, fp32 = (gemm[f"{kind}_{both}"] * 1e9 for kind in KINDS)
        rates = Rates(int8, fp32, fp32, max(bandwidth[both].values()) * 1e9)
        stages = stages_over_floor(bundle, image, rates, size, folder)
        advance()
    return {
        "gemm_gop_s": {name: round(value, 1) for name, value in gemm.items()},
        "bandwidth_gb_s": {n: {name: round(value, 2) for name, value in of.items()} for n, of in bandwidth.items()},
        "page_faults": faults,
        "encoder": encoder,
        "encoder_over_floor": encoder["over_floor"],
        "aim": AIM,
        "accepted": encoder["over_floor"] <= AIM,
        "kinds": encoder_layers.by_kind(nodes),
        "stages": stages,
        "layers": encoder_layers.rows(nodes),
        "others_cpu_share": others.share(),
        "quick": quick,
        **setting(bundle, FLAVOR, THREADS),
    }


def gemm_gop_s(repeats: int) -> dict[str, float]:
    """1e9 operations per second by ``int8_1_thread``, ``fp32_2_threads`` and so on."""
    return {
        f"{kind}_{_threads(threads)}": rate(fastest_product(kind, threads, repeats), repeats) / 1e9
        for kind in KINDS
        for threads in (1, THREADS)
    }


@dataclass(frozen=True)
class Encoder:
    """A bundle's image model and what one look is.

    Attributes:
        model, spec: its bytes, and how it is run.
        outputs: all of them, as the first look wants them.
        feeds: one frame.
        work: what it costs.
    """

    model: bytes
    spec: Model
    outputs: tuple[str, ...]
    feeds: dict[str, NDArray[Any]]
    work: Workload

    @classmethod
    def of(cls, bundle: Bundle) -> Encoder:
        """The one that ships."""
        spec, shape = bundle.manifest.flavor(FLAVOR).image, bundle.manifest.preprocess
        model = bundle.read(spec.file)
        graph = onnx.load_model_from_string(model)
        work = workload("encode", graph, {"h": shape.height, "w": shape.width})
        feeds: dict[str, NDArray[Any]] = {"image": shape(Frame(pictures(1, seed=2)[0]))}
        return cls(model, spec, tuple(output.name for output in graph.graph.output), feeds, work)


def encoder_over_floor(bundle: Bundle, encoder: Encoder, product: Product, rounds: int, looks: int) -> dict[str, Any]:
    """One look against the time of its multiply-adds, in rounds of both in turns.

    Args:
        bundle: whose encoder it is.
        encoder: whose look.
        product: gives the rate; on as many threads.
        rounds: that the ratio is the median of.
        looks: in a round.
    """
    session = open_fastest(encoder.model, encoder.spec, THREADS, bundle, [encoder.feeds], EMBEDDING)
    settle(session)
    ratios, every = list[float](), list[float]()
    for number in range(-1, rounds):  # the first warms up
        time.sleep(_REST_S)
        spent, products = list[float](), list[float]()
        for _ in range(looks):
            spent.append(seconds(lambda: session.run(encoder.feeds, encoder.outputs)))
            products.append(seconds(product.run))
        if number >= 0:
            floor = 2 * encoder.work.macs * statistics.median(products) / product.operations
            ratios.append(statistics.median(spent) / floor)
            every += spent
    session.close()
    over, p50_ms = statistics.median(ratios), statistics.median(every) * 1e3
    return {
        "backend": session.name,
        "p50_ms": round(p50_ms, 3),
        "gmac": round(encoder.work.macs / 1e9, 4),
        "floor_ms": round(p50_ms / over, 3),
        "over_floor": round(over, 3),
        "over_floor_p10_p90": [round(float(value), 3) for value in np.percentile(ratios, [10, 90])],
        "rounds": rounds,
    }


def stages_over_floor(
    bundle: Bundle, encoder: Encoder, rates: Rates, size: Size, folder: Path
) -> list[dict[str, float | str | None]]:
    """Every stage's median and what its operations or bytes take at least.

    Args:
        bundle: an opened bundle with a decoder and a closer look.
        encoder: its image model.
        rates: of the machine.
        size: how much is measured.
        folder: for memories.
    """
    spent = _answering(bundle, size.frames, folder / "taught.memory")
    spent["search"] = _searching(size.entries, size.frames, folder / "searched.memory")
    words, steps = _writing(bundle, encoder, size.frames)
    spent |= words
    works = _workloads(bundle, encoder, size.entries, steps)
    return [_stage(name, ms, works.get(name), rates) for name, ms in spent.items()]


def _stage(name: str, ms: float, work: Workload | None, rates: Rates) -> dict[str, float | str | None]:
    if work is None:  # nothing that could be counted
        return {"stage": name, "ms": round(ms, 4), "gmac": None, "mb": None, "floor_ms": None, "over_floor": None}
    least = bound(work, rates)
    return {
        "stage": name,
        "ms": round(ms, 4),
        "gmac": round(work.macs / 1e9, 4),
        "mb": round(work.least_bytes / 1e6, 3),
        "floor_ms": round(least.least_ms, 4),
        "bound_by": least.bound_by,
        "over_floor": round(ms / least.least_ms, 2),
    }


def _workloads(
    bundle: Bundle, encoder: Encoder, entries: int, steps: Sequence[Mapping[str, int]]
) -> dict[str, Workload]:
    """What each stage does, by its name."""
    manifest, models = bundle.manifest, bundle.manifest.flavor(FLAVOR)
    shape, closer, fusion = manifest.preprocess, manifest.closer, models.fusion
    assert closer is not None
    assert fusion is not None
    image, dim = onnx.load_model_from_string(encoder.model), manifest.image_space.dim
    written = [workload("step", _sized(bundle.read(fusion.step.file), dims)) for dims in steps]
    return {
        "preprocess": preprocessing(FRAME, shape),
        "compare": _moving("compare", 2 * math.prod((shape.height, shape.width, 3))),
        "encode": encoder.work,
        "second_look": workload("second_look", image, {"h": closer.side, "w": closer.side}),
        "search": searching(entries, (data.DIM,)),
        "vote": _moving("vote", len(TEXTS) * TAUGHT_EACH * dim * 4),
        "prefill": workload("prefill", _sized(bundle.read(fusion.prefill.file), steps[0])),
        "decode": Workload(
            "decode",
            tuple(layer for one in written for layer in one.layers),
            sum(one.boundary_bytes for one in written),
            written[0].resident_bytes,
            written[-1].activation_bytes,
        ),
    }


def _sized(model: bytes, dims: Mapping[str, int]) -> onnx.ModelProto:
    """A model whose dimensions have sizes, and whose arithmetic on shapes ONNX Runtime has folded."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for name, size in dims.items():
        options.add_free_dimension_override_by_name(name, size)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        options.optimized_model_filepath = file.name
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(file.name)


def _moving(name: str, read: int) -> Workload:
    """A stage that does no more than read so many bytes."""
    return Workload(name, (Layer(name, name, 0, "fp32", 0, read, 0),), read, 0, read)


def _answering(bundle: Bundle, frames: int, folder: Path) -> dict[str, float]:
    """Median ms of each stage of an answer from memory, and of what lies between them.

    There are no glimpses here and no first look is sure, so that every stage runs.
    """
    rules = msgspec.structs.replace(bundle.manifest.answering, sure_above=1.0, glimpse_above=1.0)
    bundle = copy.copy(bundle)
    bundle.manifest = msgspec.structs.replace(bundle.manifest, answering=rules)
    stages: defaultdict[str, list[float]] = defaultdict(list)
    shown = pictures(16, seed=2)
    with Ravlm(bundle, open_memory(bundle, folder), flavor=FLAVOR, budget_ms=_BUDGET_MS, threads=THREADS) as ravlm:
        ravlm.settle()
        teach(ravlm)
        for number in range(-_WARM_UP, frames):
            time.sleep(_REST_S)
            latency = ravlm.ask(Frame(shown[number % len(shown)]), QUESTION).latency
            if number >= 0:
                for name, ms in latency.stages_ms.items():
                    stages[name].append(ms)
                stages["between stages"].append(latency.total_ms - sum(latency.stages_ms.values()))
    return {name: statistics.median(spent) for name, spent in stages.items()}


def _searching(entries: int, queries: int, folder: Path) -> float:
    """Median ms of a search among so many entries."""
    images, asked = data.clustered(entries, queries, seed=1)
    scale.build(folder, images, images, lambda **_: None)
    with Memory.open(folder, scale.SPACES, read_only=True) as memory:
        return statistics.median(seconds(partial(memory.search, "image", query, data.K)) for query in asked) * 1e3


def _writing(bundle: Bundle, encoder: Encoder, times: int) -> tuple[dict[str, float], list[dict[str, int]]]:
    """Median ms of reading a question and of writing its answer; sizes of the graphs' dimensions at each step."""
    image, decoder = ImageEncoder(bundle, FLAVOR, THREADS), FusionDecoder(bundle, FLAVOR, THREADS)
    image.settle()
    cells = image.look(encoder.feeds["image"]).cells
    prompt = decoder.lay_out(QUESTION, [Passage(TEXTS[i % 2]) for i in range(decoder.spec.entries)])
    state = decoder.prefill(prompt, cells)
    reading, writing = list[float](), list[float]()
    for _ in range(-1, times):
        time.sleep(_REST_S)
        reading.append(seconds(lambda: decoder.prefill(prompt, cells)))
        writing.append(seconds(lambda: decoder.generate(state)))
    generated = decoder.generate(state)
    image.close()
    decoder.close()
    blocks, tokens = prompt.tokens.shape
    fixed = {"b": blocks, "t": tokens, "m": len(state.fixed["mask"]), "n": 1}
    steps = [{**fixed, "p": position} for position in range(len(generated.tokens) + generated.complete)]
    return {"prefill": statistics.median(reading[1:]) * 1e3, "decode": statistics.median(writing[1:]) * 1e3}, steps


def _threads(count: int) -> str:
    return f"{count}_thread{'s' * (count > 1)}"


def _show(found: Mapping[str, Any]) -> None:
    first = ("gemm_gop_s", "bandwidth_gb_s", "page_faults", "encoder")
    table("Floors", ("figure", "value"), figure_rows({name: found[name] for name in first}))
    worst = sorted(found["layers"], key=lambda row: row["floor_ms"] - row["ms"])[:_SHOWN]
    for title, rows in (
        ("Stages of an answer", found["stages"]),
        ("The encoder by kind of node", found["kinds"]),
        (f"The {_SHOWN} nodes that lose most", worst),
    ):
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table(title, columns, [[_cell(row.get(name)) for name in columns] for row in rows])
    verdict = "within" if found["accepted"] else "beyond"
    say(f"The encoder takes {found['encoder_over_floor']:.2f} times its INT8 floor: {verdict} the aim of {AIM}.")
    say(setting_line(found))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
