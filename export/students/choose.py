"""Which student a device gets: by the measured latency of its INT8 graph, not by counting operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from edge_ravlm.errors import UsageError
from edge_ravlm.export.onnx_graph import image_graph
from edge_ravlm.export.quantize.cpu_u8 import quantize
from edge_ravlm.export.students import STUDENTS, StudentKind
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.targets import Target

Latency = Callable[[StudentKind], float]
"""Milliseconds of one picture through a kind's INT8 graph."""

_CALIBRATION, _WARM_UP, _RUNS = 4, 3, 15


@dataclass(frozen=True)
class Measured:
    """One candidate on the machine at hand.

    Attributes:
        name: of the kind.
        side: of its input in pixels.
        int8_ms: median of one picture through the INT8 graph.
        fits: whether that is within the budget.
    """

    name: str
    side: int
    int8_ms: float
    fits: bool


@dataclass(frozen=True)
class Choice:
    """What was chosen, and on what grounds.

    Attributes:
        kind: the student to train.
        measured: every candidate; empty where the device's GPU is not here to be measured.
        reason: one sentence for the report.
    """

    kind: StudentKind
    measured: tuple[Measured, ...]
    reason: str


def choose_student(
    target: Target,
    budget_ms: float,
    kinds: Collection[str] = tuple(STUDENTS),
    *,
    latency: Latency | None = None,
) -> Choice:
    """The kind of the highest expected accuracy whose INT8 graph fits the budget.

    Args:
        target: the device. A GPU cannot be measured here: it gets the plain family, whose 3x3 convolutions its integer
            units like, and the choice says that nothing was measured.
        budget_ms: for one picture through the image encoder.
        kinds: names of the candidates.
        latency: measures a kind; by default its graph in ONNX Runtime, on one thread.

    Raises:
        UsageError: an unknown kind, no candidate, or none that fits; the message says what the fastest one takes.
    """
    candidates = sorted(_named(kinds), key=lambda kind: -kind.prior)
    if target.engine:
        plain = next((kind for kind in candidates if kind.family == "plain"), candidates[0])
        reason = (
            f"{plain.name}: {_PLAIN if plain.family == 'plain' else _FIRST}; not measured, {target.name} is not here"
        )
        return Choice(plain, (), reason)
    measure = latency or int8_ms
    times = {kind.name: measure(kind) for kind in candidates}
    measured = tuple(Measured(k.name, k.side, times[k.name], times[k.name] <= budget_ms) for k in candidates)
    fitting = [kind for kind in candidates if times[kind.name] <= budget_ms]
    if not fitting:
        fastest = min(measured, key=lambda one: one.int8_ms)
        raise UsageError(
            "student",
            expected=f"one within {budget_ms:g} ms",
            got=f"{fastest.int8_ms:.1f} ms for the fastest, {fastest.name}",
            do="raise student.budget_ms or choose a smaller side",
        )
    best = fitting[0]
    taken = f"{times[best.name]:.1f} ms of {budget_ms:g} ms on 1 thread"
    reason = f"{best.name}: {taken}, the most accurate that fits"
    return Choice(best, measured, reason)


_PLAIN = "plain 3x3 convolutions suit a GPU's integer units"
_FIRST = "the most accurate of the candidates"


def int8_ms(kind: StudentKind, threads: int = 1) -> float:
    """Median milliseconds of one picture through the kind's ``cpu-u8`` graph, on the session that ships.

    Weights do not matter for that, nor do pictures: noise will do.
    """
    shape = Preprocess(height=kind.side, width=kind.side)
    pictures = _noise(shape)
    deployed = kind.build().eval().fused()
    for part in deployed.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.constant_(part.bias, 0.1)  # untrained ones are zero, and the exporter would drop them
    graph = quantize(image_graph(deployed, shape), pictures)
    session = open_session(graph.SerializeToString(), Model(file=kind.name), threads)
    spent = []
    for turn in range(_WARM_UP + _RUNS):
        began = time.perf_counter()
        session.run({"image": pictures[turn % len(pictures)]}, ("embedding",))
        spent.append(1000 * (time.perf_counter() - began))
    session.close()
    return statistics.median(spent[_WARM_UP:])


def _named(kinds: Collection[str]) -> list[StudentKind]:
    unknown = [name for name in kinds if name not in STUDENTS]
    if unknown or not kinds:
        raise UsageError(
            "student",
            expected=f"one of {', '.join(STUDENTS)}",
            got=f"'{unknown[0]}'" if unknown else "no name",
            do="correct student.kind in the recipe",
        )
    return [STUDENTS[name] for name in kinds]


def _noise(shape: Preprocess) -> Sequence[Pixels]:
    rng = np.random.default_rng(0)
    return [np.asarray(rng.integers(0, 256, shape.buffer().shape), np.uint8) for _ in range(_CALIBRATION)]
