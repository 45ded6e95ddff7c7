"""How does the memory compare with what a user would pick instead: FAISS, hnswlib, sqlite-vec, brute force?

    python benchmarks/memory_peers.py --json        [--quick] [--all] [--only NAME ...] [--cache FOLDER] [--plot FILE]

- Each system and size has processes of its own, and one thread. Every operating point of every system is searched in
  rounds that alternate between the systems, who goes first taking turns; the first searches of a turn are not counted.
  Ours as it comes (setting 0) may use two threads: it shares more than 200,000 rows out among two graphs. Setting -1 is
  the same on one processor, as are all its other settings.
- `points`: recall@10 against exact search over the unrounded vectors, and p50 and p99 of one search. Slow systems are
  searched less often: `searches` says how often.
- `open_ms`, `first_search_ms`, `anon_mb`, `file_mb`: medians over fresh processes with warm file caches. The last two
  are by how much opening and searching grows the process: `anon` is its own, `file` can be dropped and read again.
- `adding_p99_ms`: of searches while another thread adds 100 vectors a second. `durable`: whether those are on the disk.
- `build_s`, `build_cpu_s`: at most one build a core at a time. Built files are kept in the cache and used again.
- `dominated_by`: peers that find as much or more than ours on one processor, with a lower p50 and a lower p99.
- `memory_1m`: ours as it comes at the largest size, and on one processor (`one_thread_…`); `anon_fraction` is `anon_mb`
  over the size of its files.

Graphs over float32 take minutes to build for a million vectors: without `--all` they are left out there unless they
are in the cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import Bystanders, percentiles
from memory import data
from memory.front import Point, dominators
from memory.processes import REQUIREMENTS, SystemProcess, built, in_cache
from memory.systems import ALONE, OURS, SYSTEMS
from peers.environments import BUILD, interpreter

from edge_ravlm.console import complain, progress, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.machine import libraries, machine

MILLION = 1_000_000


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        counts: vectors stored.
        queries: different ones; each is asked once for every operating point.
        rounds: that they are spread over.
        turn_s: longest time for one operating point in one round.
        starts: fresh processes to open in.
        adding_s: how long searches go on beside additions.
    """

    counts: tuple[int, ...] = (10_000, 100_000, MILLION)
    queries: int = 2_000
    rounds: int = 4
    turn_s: float = 0.5
    starts: int = 3
    adding_s: float = 3.0


QUICK = Size(counts=(10_000,), queries=200, rounds=2, turn_s=0.2, starts=1, adding_s=0.3)


@dataclass(frozen=True)
class Entrant:
    """A system that takes part at one size: its name, interpreter, files, data, and what building it took."""

    name: str
    python: Path
    files: Path
    data: Path
    took: Mapping[str, float]

    def process(self, files: Path | None = None) -> SystemProcess:
        """A fresh one, on its files or a copy of them."""
        return SystemProcess(self.name, files or self.files, self.data, self.python)


def measure(size: Size, cache: Path, names: Sequence[str] = tuple(SYSTEMS), everything: bool = False) -> dict[str, Any]:
    """All figures.

    Args:
        size: how much.
        cache: where vectors, environments and built files are kept.
        names: of the systems that take part; ours always does.
        everything: build at every size, however long it takes.
    """
    others = Bystanders()
    left_out: dict[str, str] = {}
    pythons = _interpreters([OURS, *(name for name in names if name != OURS)], cache, left_out)
    folder = cache / "cache" / "memory"
    entrants = _built(size, pythons, folder, everything, left_out)
    sizes = {count: _figures(size, entrants[count]) for count in size.counts}
    return {
        "machine": machine(),
        "threads": 1,
        "libraries": libraries(),
        "dim": data.DIM,
        "vectors": f"synthetic, clusters of {data.MEMBERS}",
        "sizes": {str(count): figures for count, figures in sizes.items()},
        "dominated_by": {str(count): dominated_by(figures) for count, figures in sizes.items()},
        "left_out": left_out,
        **({"memory_1m": summary(sizes[MILLION][OURS])} if MILLION in sizes else {}),
        "others_cpu_share": others.share(),
    }


def dominated_by(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The peers, all in one thread, that dominate ours in one thread; each with the point where it does."""
    points = {name: [Point(**point) for point in of["points"]] for name, of in figures.items()}
    alone = next(point for point in points.pop(OURS) if point.setting == ALONE)
    return {name: asdict(point) for name, point in dominators(alone, points).items()}


def summary(ours: Mapping[str, Any]) -> dict[str, float]:
    """Ours as it comes, in a few figures; the first search after opening maps the graph."""
    points = {one["setting"]: one for one in ours["points"]}
    return {
        **{name: ours[name] for name in ("open_ms", "first_search_ms")},
        **{name: points[0][name] for name in ("recall10", "p50_ms", "p99_ms")},
        **{f"one_thread_{name}": points[ALONE][name] for name in ("p50_ms", "p99_ms")},
        "anon_fraction": round(ours["anon_mb"] / ours["size_mb"], 4),
    }


def _interpreters(names: Sequence[str], cache: Path, left_out: dict[str, str]) -> dict[str, Path]:
    """The Python of each system that has what it needs."""
    peers = [name for name in names if SYSTEMS[name].needs_packages]
    found = dict.fromkeys((name for name in names if name not in peers), Path(sys.executable))
    try:
        found |= dict.fromkeys(peers, interpreter(REQUIREMENTS, cache)) if peers else {}
    except EdgeRavlmError as error:
        _leave_out(", ".join(peers), str(error), left_out)
    return found


def _built(
    size: Size, pythons: Mapping[str, Path], folder: Path, everything: bool, left_out: dict[str, str]
) -> dict[int, list[Entrant]]:
    """Who takes part at each size, with the files built, the largest first."""
    entrants: dict[int, list[Entrant]] = {}
    for count in sorted(size.counts, reverse=True):
        vectors = data.kept(count, size.queries, folder)
        chosen = []
        for name in pythons:
            if everything or count <= SYSTEMS[name].largest or in_cache(name, vectors, folder):
                chosen.append(name)
            else:
                _leave_out(f"{name} at {count:,}", "takes minutes to build; --all builds it", left_out)

        def made(name: str, vectors: Path = vectors) -> Entrant | EdgeRavlmError:
            try:
                files, took = built(name, vectors, pythons[name], folder)
            except EdgeRavlmError as error:
                return error
            return Entrant(name, pythons[name], files, vectors, took)

        with ThreadPoolExecutor(os.cpu_count()) as pool, progress(f"build {count:,}", len(chosen)) as advance:
            entrants[count] = []
            for name, entrant in zip(chosen, pool.map(made, chosen), strict=True):
                advance()
                if isinstance(entrant, Entrant):
                    entrants[count].append(entrant)
                elif name == OURS:
                    raise entrant
                else:
                    _leave_out(f"{name} at {count:,}", str(entrant), left_out)
    return entrants


def _figures(size: Size, entrants: Sequence[Entrant]) -> dict[str, dict[str, Any]]:
    """Everything about each system at one size."""
    points = _take_turns(size, entrants)
    figures: dict[str, dict[str, Any]] = {}
    for entrant in entrants:
        figures[entrant.name] = {
            **{name: round(value, 2) for name, value in entrant.took.items()},
            **_starting(size, entrant),
            **_adding(size, entrant),
            "durable": SYSTEMS[entrant.name].durable,
            "points": [asdict(point) for point in points[entrant.name]],
        }
    return figures


def _take_turns(size: Size, entrants: Sequence[Entrant]) -> dict[str, list[Point]]:
    ms: dict[tuple[str, int], list[float]] = {}
    recalls: dict[tuple[str, int], list[tuple[float, int]]] = {}
    step = size.queries // size.rounds
    with ExitStack() as running, progress("rounds", (1 + size.rounds) * len(entrants)) as advance:
        processes = {entrant.name: running.enter_context(entrant.process()) for entrant in entrants}
        for name, process in processes.items():
            process.tell("open", setting=SYSTEMS[name].settings[0])
        names = list(processes)
        for n in range(-1, size.rounds):  # the first one warms the page tables
            first = n % size.rounds * step
            for name in names[n % len(names) :] + names[: n % len(names)]:
                for setting in SYSTEMS[name].settings:
                    told = processes[name].tell(
                        "search", setting=setting, first=first, last=first + step, seconds=size.turn_s
                    )
                    if n < 0:
                        continue
                    ms.setdefault((name, setting), []).extend(told["ms"])
                    recalls.setdefault((name, setting), []).append((told["recall10"], len(told["ms"])))
                advance()
    points: dict[str, list[Point]] = {name: [] for name in names}
    for (name, setting), spent in ms.items():
        recall10 = sum(share * count for share, count in recalls[name, setting]) / len(spent)
        spread = percentiles(spent)
        points[name].append(Point(setting, round(recall10, 4), spread["p50"], spread["p99"], len(spent)))
    return points


def _starting(size: Size, entrant: Entrant) -> dict[str, float]:
    """Medians over fresh processes."""
    told = []
    for _ in range(size.starts):
        with entrant.process() as process:
            told.append(process.tell("start", setting=SYSTEMS[entrant.name].settings[0], seconds=size.turn_s))
    return {name: round(statistics.median(one[name] for one in told), 3) for name in told[0]}


def _adding(size: Size, entrant: Entrant) -> dict[str, float]:
    """Searching on a copy of the files while another thread adds."""
    with tempfile.TemporaryDirectory(prefix="adding-", dir=entrant.files.parent) as scratch:
        copy = shutil.copytree(entrant.files, Path(scratch) / "files")
        with entrant.process(copy) as process:
            told = process.tell("search_while_adding", setting=SYSTEMS[entrant.name].settings[0], seconds=size.adding_s)
    spread = percentiles(told["ms"])
    return {"adding_p50_ms": spread["p50"], "adding_p99_ms": spread["p99"], "added": told["added"]}


def _leave_out(what: str, why: str, left_out: dict[str, str]) -> None:
    left_out[what] = why
    complain(f"Left out {what}: {why}")


def _show(figures: Mapping[str, Any]) -> None:
    columns = ("system", "setting", "recall@10", "p50 ms", "p99 ms", "searches")
    about = ("system", "open ms", "first ms", "anon MB", "file MB", "files MB", "build s", "adding p99 ms", "durable")
    keys = ("open_ms", "first_search_ms", "anon_mb", "file_mb", "size_mb", "build_s", "adding_p99_ms", "durable")
    for count, systems in figures["sizes"].items():
        keys_of = [(name, point) for name, of in systems.items() for point in of["points"]]
        rows = [(name, *(f"{value:g}" for value in point.values())) for name, point in keys_of]
        table(f"{int(count):,} vectors: operating points (setting 0: as it comes, -1: in one thread)", columns, rows)
        table("", about, [(name, *(str(of[key]) for key in keys)) for name, of in systems.items()])
        who = ", ".join(figures["dominated_by"][count]) or "no peer"
        complain(f"{int(count):,}: {who} finds as much as ours or more, and faster.")


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="10,000 vectors only; not to be quoted")
    parser.add_argument("--all", action="store_true", help="build every system at every size, however long it takes")
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="these beside ours")
    parser.add_argument("--cache", type=Path, default=BUILD, help="where built files are kept")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw recall against latency")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else Size()
    try:
        figures = measure(size, arguments.cache, arguments.only, arguments.all)
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    if arguments.plot:
        from memory.plots import plot  # noqa: PLC0415  # slow to load

        plot(figures, arguments.plot)
    if arguments.json:
        say_json({"quick": arguments.quick, **figures})
    else:
        _show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
