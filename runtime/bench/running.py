"""Running a scenario: load, teach, warm up, play, and say what it came to."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edge_ravlm.bundle import Bundle
from edge_ravlm.console import Bar
from edge_ravlm.errors import UsageError
from edge_ravlm.machine import libraries, machine
from edge_ravlm.runtime.bench import cameras, loadgen
from edge_ravlm.runtime.bench.meter import Meter, Spent
from edge_ravlm.runtime.bench.outcome import Outcome, Record, accuracy, levels, percentiles, stages
from edge_ravlm.runtime.bench.workload import Workload, yard
from edge_ravlm.runtime.opening import load, usual_threads
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.watching.process import on_time, unhurried_collection

Scenario = Literal[loadgen.Scenario, "camera"]

BUDGET_MS = 10_000.0
"""Of LoadGen's scenarios, which know no deadline: beyond any answer."""

QUICK_S = 5.0
_WARM_UP = 30


@dataclass(frozen=True)
class Wish:
    """What is to be measured.

    Attributes:
        scenario: see ``Scenario``.
        rules: of LoadGen's scenarios; a camera's runs last as long.
        flavor: which of the bundle's quantization flavours.
        threads: CPU threads of the models; None as ``load`` chooses.
        generate: whether the decoder writes the answers.
        fps: frames a second of the camera.
        budget_ms: from a camera's frame to its answers.
    """

    scenario: Scenario
    rules: loadgen.Rules
    flavor: str = "cpu-u8"
    threads: int | None = None
    generate: bool = False
    fps: float = 10.0
    budget_ms: float = 100.0

    def __post_init__(self) -> None:
        if self.fps <= 0 or self.rules.seconds <= 0 or self.rules.streams < 1 or self.rules.workers < 1:
            raise UsageError(
                "bench",
                expected="fps and seconds above 0, streams and workers of 1 or more",
                got=f"{self.fps:g}, {self.rules.seconds:g}, {self.rules.streams} and {self.rules.workers}",
                do="correct them",
            )


def run(bundle: Bundle, wish: Wish, folder: Path, bar: Bar) -> Outcome:
    """Measure.

    Args:
        bundle: what.
        wish: how.
        folder: for LoadGen's files.
        bar: opens progress bars.
    """
    with bar("reading the clip", None) as advance:
        workload = yard(advance)
    began = time.perf_counter()
    threads = wish.threads or usual_threads()
    with load(bundle, flavor=wish.flavor, threads=threads, budget_ms=BUDGET_MS) as ravlm:
        load_s = time.perf_counter() - began
        workload.instruct(ravlm)
        cold = workload.ask(ravlm, workload.samples[0], generate=wish.generate).latency
        ravlm.settle()
        if wish.scenario in ("multi-stream", "offline"):
            ravlm.learn_together()
        fastest_ms = _warm(ravlm, workload, wish.generate)
        figures: dict[str, Any] = {"load_s": round(load_s, 3), "first_answer_ms": round(cold.total_ms, 3)}
        play, around = (_camera, on_time) if wish.scenario == "camera" else (_loadgen, unhurried_collection)
        with around():
            found, records, spent, why = play(ravlm, workload, wish, folder, fastest_ms, bar)
    figures |= found
    figures |= {
        "stages_ms": stages(records),
        "levels": levels(records),
        "cpu_ms_per_answer": round(spent.cpu_seconds * 1e3 / len(records), 3),
        "energy_mj_per_answer": None if spent.energy_j is None else round(spent.energy_j * 1e3 / len(records), 3),
        "rss_mb": round(spent.rss_mb - workload.megabytes, 1),
        "anonymous_mb": round(spent.anonymous_mb - workload.megabytes, 1),
        "yardstick_ms": round(float(np.median([record.yardstick_ms for record in records])), 3),
    }
    return Outcome(
        scenario=wish.scenario,
        valid=not why,
        because=why,
        setting=_setting(ravlm, wish, threads),
        quality={
            "accuracy": accuracy(records),
            "answers": len(records),
            "parity": msgspec.to_builtins(bundle.manifest.parity.get(wish.flavor)),
        },
        figures=figures,
        records=records,
        spent=spent,
    )


_Played = tuple[dict[str, Any], list[Record], Spent, str]


def _loadgen(ravlm: Ravlm, workload: Workload, wish: Wish, folder: Path, fastest_ms: float, bar: Bar) -> _Played:
    assert wish.scenario != "camera"
    total = int(wish.rules.seconds * 1e3 / fastest_ms)
    with bar(f"LoadGen, {wish.scenario}", total) as advance, Meter() as meter:
        played = loadgen.play(
            wish.scenario,
            workload.samples,
            lambda samples: workload.ask_all(ravlm, samples, generate=wish.generate),
            wish.rules,
            folder,
            fastest_ms,
            advance,
        )
    figures = {
        "latency_ms": percentiles([record.ms for record in played.records]),
        "answers_per_s": round(len(played.records) / meter.spent.seconds, 2),
        "loadgen": played.figures,
    }
    why = wish.rules.shortfall or ("" if played.valid else "LoadGen found it invalid, see its summary")
    return figures, played.records, meter.spent, why


def _camera(ravlm: Ravlm, workload: Workload, wish: Wish, _folder: Path, _fastest_ms: float, bar: Bar) -> _Played:
    every_ms = 1e3 / wish.fps
    with bar(f"a frame every {every_ms:.1f} ms", int(wish.rules.seconds * wish.fps)) as advance, Meter() as meter:
        watched = cameras.watch(
            ravlm,
            workload,
            workload.things,
            every_ms=every_ms,
            budget_ms=wish.budget_ms,
            seconds=wish.rules.seconds,
            advance=advance,
        )
    nice = os.getpriority(os.PRIO_PROCESS, 0)  # as far as `on_time` was allowed to go
    figures = {"fps": wish.fps, "budget_ms": wish.budget_ms, "nice": nice, **watched.figures()}
    return figures, watched.records, meter.spent, f"quick: {wish.rules.seconds:g} s" if wish.rules.quick else ""


def _warm(ravlm: Ravlm, workload: Workload, generate: bool) -> float:
    """Ask a little; the shortest time of an answer in ms."""
    some = workload.samples[:: max(1, len(workload.samples) // _WARM_UP)]
    return min(workload.ask(ravlm, one, generate=generate).latency.total_ms for one in some)


def _setting(ravlm: Ravlm, wish: Wish, threads: int) -> dict[str, Any]:
    bundle = ravlm.bundle
    return {
        "machine": machine(),
        "libraries": libraries(),
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "flavor": wish.flavor,
        "precision": "INT8",
        "backend": ravlm.backend,
        "threads": threads,
        "workers": wish.rules.workers,
        "level": "generated" if wish.generate else "retrieved",
    }
