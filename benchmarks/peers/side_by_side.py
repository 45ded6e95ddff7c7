"""How long do others take for the same frames and questions?

    python benchmarks/peers/side_by_side.py --json [--quick] [--only NAME ...]

Every peer gets the same 1280x720 frame and question and gives the text of the nearest of as many taught entries (or
writes one). Each lives in a process and an environment of its own, on two threads; they are asked in turn, frame by
frame, and in every round another one goes first. Before each answer that is timed a peer gives one that is not, so that
it finds the processor's caches as it would if it ran alone.

Ours is measured in three ways: `retrieved` (whole frame), `retrieved_region` (a region given, as with a camera whose
region of interest is known) and `generated`. `second_looks` is the share of answers for which a first look was not sure
and a second one was taken (a closer one, in a region the full one after a glimpse); `generated` always takes both. A
peer's `ratio_p50` is its median divided by that of the one named in `against`, and `ratio_p50_ci95` the bootstrap
confidence interval over paired frames; above 1, ours is faster. `ratio_region_p50` is the same against
`retrieved_region`, for peers that retrieve. Ratios at the top are against `retrieved`.

- `ratio_undisputed_p50` leaves out a stage that a sceptic would not count. `textbook` embeds the question with every
  frame, as its recipe is written, while the others, ours among them, do so when it changes: without `question`.
  `smallcap` writes eight tokens, ours as many as the answer has: without `decode`, so that its first token stands
  against our whole answer.
- PyTorch's threads wait for each other actively, so on busy cores it loses far more than the others do: with a high
  `others_cpu_share` the ratios flatter us and must not be quoted.
- Peers with `random` weights have the exact architecture and say nothing of use: speed only.
- Our student in full precision never was trained to be sure: it always takes one look, as ours does at the median.
- 20 entries are pictures that each peer embedded; the rest of the memory is random vectors, as many for all.
- `idle_cpu_ms`: processor time (median) a peer took between two answers of its own, with threads that spin: it has
  to be below `REST_S` for the others not to be slowed.
- `says` is its most frequent answer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import Bystanders, paired_ratio, percentiles, setting, setting_line, warn_of_company
from main_job import FLAVOR, REST_S, THREADS, second_looks
from synthetic import QUESTION, TAUGHT_EACH, TEXTS, pictures

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError, UsageError
from edge_ravlm.machine import LIBRARIES
from peers.catalogue import OURS, PEERS, RANDOM, PeerSpec
from peers.environments import interpreter, requirements, wanted
from peers.graphs import graph
from peers.processes import PeerProcess
from peers.protocol import Answered, Job

SHOWN = 16
"""Different pictures, shown over and over."""

HEADLINES = ("textbook", "clip_ort")
"""Peers whose ratio stands at the top."""

Advance = Callable[..., None]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: frames that are timed.
        warm_up: rounds before them.
        entries: in every memory.
    """

    rounds: int = 80
    warm_up: int = 3
    entries: int = 1_000


QUICK = Size(rounds=4, warm_up=1)


class Asked(Protocol):
    """Who can be asked: a ``PeerProcess``."""

    def ask(self, frame: int, question: str) -> Answered:
        """See ``PeerProcess.ask``."""


def measure(quick: bool = False, only: Sequence[str] = ()) -> dict[str, Any]:
    """Ask everyone.

    Args:
        quick: a short form, to see that it runs.
        only: names of the peers to compare with; all unless told.

    Raises:
        UsageError: a name that is none.
        EdgeRavlmError: a peer cannot be installed, or died.
    """
    size, chosen = QUICK if quick else Size(), _chosen(only)
    bundle = Bundle.open(STARTER)
    pythons = {spec.name: _python(spec) for spec in chosen}
    graphs = {name: str(graph(name, bundle, THREADS)) for spec in chosen for name in spec.graphs}
    with tempfile.TemporaryDirectory(prefix="edge-ravlm-peers-") as scratch:
        job = job_in(Path(scratch), size.entries, graphs)
        others = Bystanders()
        with ExitStack() as running:
            processes = {
                spec.name: running.enter_context(
                    PeerProcess(spec.name, spec.opener, pythons[spec.name], job, _packages(spec))
                )
                for spec in chosen
            }
            environments = {name: process.ready().environment for name, process in processes.items()}
            with progress("frames", size.warm_up + size.rounds) as advance:
                answers = take_turns(processes, size, advance)
        share = others.share()  # the peers' processes have ended: what they took is not the others'
    return {
        "question": QUESTION,
        "rounds": size.rounds,
        "entries": size.entries,
        **compared(chosen, answers, environments),
        "others_cpu_share": share,
        **setting(bundle, FLAVOR, THREADS),
    }


def job_in(folder: Path, entries: int, graphs: Mapping[str, str]) -> Job:
    """What everyone is taught and shown; the pictures are written into ``folder``."""
    file = folder / "pictures.npz"
    np.savez(file, taught=np.stack(pictures(2 * TAUGHT_EACH, seed=1)), shown=np.stack(pictures(SHOWN, seed=2)))
    return Job(str(file), TEXTS * TAUGHT_EACH, entries, THREADS, dict(graphs))


def take_turns(asked: Mapping[str, Asked], size: Size, advance: Advance) -> dict[str, list[Answered]]:
    """Everyone's answer to every frame; in every round another one goes first."""
    names = list(asked)
    answers: dict[str, list[Answered]] = {name: [] for name in names}
    for n in range(-size.warm_up, size.rounds):
        first = n % len(names)
        for name in names[first:] + names[:first]:
            # Another scene than the frame that is timed, and another frame than the one asked about before.
            for frame in ((n + 5) % SHOWN, n % SHOWN):
                time.sleep(REST_S)
                answer = asked[name].ask(frame, QUESTION)
            if n >= 0:
                answers[name].append(answer)
        advance()
    return answers


def compared(
    specs: Sequence[PeerSpec],
    answers: Mapping[str, Sequence[Answered]],
    environments: Mapping[str, Mapping[str, str | None]],
) -> dict[str, Any]:
    """Everyone's figures, and the ratios of the peers' medians to ours."""
    spent = {name: [answer.ms for answer in given] for name, given in answers.items()}
    ours = {spec.name for spec in OURS}
    everyone = {}
    for spec in specs:
        figures = _figures(spec, answers[spec.name], environments[spec.name])
        if spec.name not in ours:
            figures["against"] = spec.against
            figures["ratio_p50"], figures["ratio_p50_ci95"] = paired_ratio(spent[spec.name], spent[spec.against])
            if spec.against == "retrieved":
                figures["ratio_region_p50"], _ = paired_ratio(spent[spec.name], spent["retrieved_region"])
            undisputed = [answer.ms - answer.stages_ms.get(spec.disputed, 0.0) for answer in answers[spec.name]]
            figures["ratio_undisputed_p50"], _ = paired_ratio(undisputed, spent[spec.against])
        everyone[spec.name] = figures
    top = {f"ratio_vs_{name}_p50": everyone[name]["ratio_p50"] for name in HEADLINES if name in everyone}
    return {
        **top,
        "ours": {name: figures for name, figures in everyone.items() if name in ours},
        "peers": {name: figures for name, figures in everyone.items() if name not in ours},
    }


def _figures(spec: PeerSpec, answers: Sequence[Answered], environment: Mapping[str, str | None]) -> dict[str, Any]:
    stages = sorted({stage for answer in answers for stage in answer.stages_ms})
    return {
        **{f"{name}_ms": value for name, value in percentiles([answer.ms for answer in answers]).items()},
        "stages_p50_ms": {
            stage: round(statistics.median(answer.stages_ms.get(stage, 0.0) for answer in answers), 3)
            for stage in stages
        },
        "second_looks": second_looks([answer.stages_ms for answer in answers]),
        "idle_cpu_ms": round(statistics.median(answer.idle_cpu_ms for answer in answers), 3),
        "says": Counter(answer.text for answer in answers).most_common(1)[0][0],
        "weights": spec.weights,
        "precision": spec.precision,
        "environment": dict(environment),
    }


def _chosen(only: Sequence[str]) -> tuple[PeerSpec, ...]:
    """Ours, and the peers of those names (all without any); ``generated`` if a peer is compared with it."""
    known = [spec.name for spec in PEERS]
    strange = [name for name in only if name not in known]
    if strange:
        raise UsageError("--only", expected=f"names among {', '.join(known)}", got=strange[0], do="choose one of these")
    peers = [spec for spec in PEERS if not only or spec.name in only]
    needed = {"retrieved", "retrieved_region", *(spec.against for spec in peers)}
    return (*(spec for spec in OURS if spec.name in needed), *peers)


def _python(spec: PeerSpec) -> Path:
    return interpreter(requirements(spec.environment)) if spec.environment else Path(sys.executable)


def _packages(spec: PeerSpec) -> tuple[str, ...]:
    return tuple(one.name for one in wanted(requirements(spec.environment))) if spec.environment else LIBRARIES


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it runs; not to be quoted")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="peers to compare with; all unless told")
    arguments = parser.parse_args()
    try:
        figures = measure(arguments.quick, arguments.only)
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    warn_of_company(figures["others_cpu_share"])
    if arguments.json:
        say_json({"quick": arguments.quick, **figures})
    else:
        columns = ("", "p50 / p99 ms", "ratio", "95 %", "undisputed", "region")
        table("Same frames, same question (ratios: to retrieved, or to the one named)", columns, _rows(figures))
        random = [name for name, found in figures["peers"].items() if found["weights"] == RANDOM]
        say(f"Random weights, for their speed alone: {', '.join(random) or 'none'}.")
        say(setting_line(figures))
    return 0


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, found in {**figures["ours"], **figures["peers"]}.items():
        ratios: tuple[str, ...] = ("",) * 4
        if name in figures["peers"]:
            low, high = found["ratio_p50_ci95"]
            region = f"{found['ratio_region_p50']:.2f}" if "ratio_region_p50" in found else ""
            undisputed, interval = f"{found['ratio_undisputed_p50']:.2f}", f"{low:.2f}–{high:.2f}"
            ratios = (f"{found['ratio_p50']:.2f}", interval, undisputed, region)
        label = f"{name} : {found['against']}" if found.get("against", "retrieved") != "retrieved" else name
        rows.append((label, f"{found['p50_ms']:.1f} / {found['p99_ms']:.1f}", *ratios))
    return rows


if __name__ == "__main__":
    sys.exit(main())
