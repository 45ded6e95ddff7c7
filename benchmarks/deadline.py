"""Does the deadline hold? The watching runtime beside a plain loop, with the same models, frames and load.

    python benchmarks/deadline.py --json            5 minutes at nominal rate, 1 at overload, 1 in each plain loop
    python benchmarks/deadline.py --quick           a minute in all
    python benchmarks/deadline.py --nice 0          without precedence over other processes, as where it is not allowed
    python benchmarks/deadline.py --plot FILE.png   the latencies, with the budget's line

A camera gives the frames of the package's own clip, round and round, and "is the gate open?" is asked about a region of
every frame. First the median of a question alone is measured (``p50_ms``); the budget is 1.5 times that.

- ``nominal``: frames come at twice the median.
- ``overload``: frames come twice as fast as the median, and another process keeps one core busy.
- ``plain_loop``: the same overload through the obvious loop: every frame in order, as fast as it goes, from a queue
  that holds what came meanwhile.
- ``newest_loop``: the same through a better one, which takes the newest frame and leaves out the others.

A miss is an answer that was given later after its frame's capture than the budget. The age is how many frames before
its own the picture was that an answer rests on; in the plain loops, how many frames had been captured since. Accuracy
is that of the answers given, held ones included, on the frames that they were given for; ``lost`` is how many frames
got none, and ``others_cpu_share`` what other programs took of the processors at nominal rate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Bystanders, setting, setting_line

import edge_ravlm
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.demo import Thing
from edge_ravlm.runtime.bench.cameras import show, watch
from edge_ravlm.runtime.bench.outcome import Record, accuracy, levels, percentiles, record
from edge_ravlm.runtime.bench.report import figure_rows
from edge_ravlm.runtime.bench.workload import CAMERA, Workload, yard
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.watching.process import NICE, on_time

FLAVOR, THREADS = "cpu-u8", 2
BUDGET_OVER_P50 = 1.5
NOMINAL, OVERLOAD = 2.0, 0.5
"""Time between two frames over the median of an answer."""

RUNS = ("nominal", "overload", "plain_loop", "newest_loop")

_MEASURED, _WARM_UP = 120, 20

_BUSY = """
import os
os.nice(max(0, -os.nice(0)))  # not with this process's precedence
while True:
    pass
"""


def main() -> int:
    """Run it and say what came out."""
    arguments = _parser().parse_args()
    try:
        found = measured(arguments.quick, arguments.nice)
    except EdgeRavlmError as error:
        complain(str(error))
        return 1
    if arguments.plot:
        plot(found, arguments.plot)
    rows = {name: found[name] for name in RUNS}
    for row in rows.values():
        row.pop("latencies_ms")
    if arguments.json:
        say_json(found)
    else:
        flat = {name: dict(figure_rows(row)) for name, row in rows.items()}
        figures = dict.fromkeys(figure for row in flat.values() for figure in row)
        table(
            f"A budget of {found['budget_ms']:.1f} ms, 1.5 times the median of {found['p50_ms']:.1f} ms",
            ("", *flat),
            [(figure, *(row.get(figure, "") for row in flat.values())) for figure in figures],
        )
        say(setting_line(found))
    return 0


def measured(quick: bool, nice: int = NICE) -> dict[str, Any]:
    """All runs, at a niceness."""
    workload = yard()
    with edge_ravlm.load("starter", threads=THREADS) as ravlm, on_time(nice):
        ravlm.settle()
        workload.instruct(ravlm)
        p50_ms = _median_ms(ravlm, workload)
        budget_ms = BUDGET_OVER_P50 * p50_ms
        seconds = (20.0, 15.0, 10.0) if quick else (300.0, 60.0, 60.0)
        others = Bystanders()
        nominal = _watched(ravlm, workload, budget_ms, NOMINAL * p50_ms, seconds[0])
        share = others.share()
        with _busy_core():
            overload = _watched(ravlm, workload, budget_ms, OVERLOAD * p50_ms, seconds[1])
            plain, newest = (
                _plain_loop(ravlm, workload, budget_ms, OVERLOAD * p50_ms, seconds[2], most) for most in (None, 1)
            )
        return {
            "p50_ms": round(p50_ms, 3),
            "budget_ms": round(budget_ms, 3),
            "nominal": nominal,
            "overload": overload,
            "plain_loop": plain,
            "newest_loop": newest,
            "others_cpu_share": share,
            "quick": quick,
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            **setting(ravlm.bundle, FLAVOR, THREADS),
        }


def _gate(workload: Workload) -> Thing:
    return next(thing for thing in workload.things if thing.name == "gate")


def _ask(ravlm: Ravlm, thing: Thing, frame: Frame, budget_ms: float) -> Answer:
    return ravlm.ask(frame, thing.question, region=thing.box(), budget_ms=budget_ms, hold=False)


def _median_ms(ravlm: Ravlm, workload: Workload) -> float:
    spent = []
    for index, pixels in enumerate(workload.pictures[: _WARM_UP + _MEASURED]):
        began = time.perf_counter()
        _ask(ravlm, _gate(workload), Frame(pixels, index=index, source=CAMERA), 1e6)
        spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent[_WARM_UP:])


def _watched(ravlm: Ravlm, workload: Workload, budget_ms: float, every_ms: float, seconds: float) -> dict[str, Any]:
    with progress(*_showing(every_ms, seconds)) as advance:
        watched = watch(
            ravlm,
            workload,
            [_gate(workload)],
            every_ms=every_ms,
            budget_ms=budget_ms,
            seconds=seconds,
            advance=advance,
        )
    return {**watched.figures(), **_latencies(watched.records)}


def _plain_loop(
    ravlm: Ravlm, workload: Workload, budget_ms: float, every_ms: float, seconds: float, most: int | None = None
) -> dict[str, Any]:
    """One frame after the other, from a queue that holds all or the newest so many."""
    queue: deque[Frame] = deque(maxlen=most)
    there, longest = threading.Condition(), 0
    thing, records, ages = _gate(workload), list[Record](), list[int]()
    newest, ended = -1, False

    def offer(frame: Frame) -> None:
        nonlocal newest, longest
        with there:
            queue.append(frame)
            newest, longest = frame.index, max(longest, len(queue))
            there.notify()

    def answer_all() -> None:
        while True:
            with there:
                there.wait_for(lambda: queue or ended)
                if ended:
                    return
                frame = queue.popleft()
            answer = _ask(ravlm, thing, frame, budget_ms)
            truth = thing.truth(frame.index % len(workload.pictures))
            records.append(record(str(frame.index), answer, None if truth is None else answer.text == truth, 0.0))
            ages.append(newest - frame.index)

    loop = threading.Thread(target=answer_all)
    loop.start()
    with progress(*_showing(every_ms, seconds)) as advance:
        offered = show(workload.pictures, every_ms, seconds, offer, advance)
    with there:
        ended = True
        there.notify()
    loop.join()
    return {
        "miss_rate": sum(one.ms > budget_ms for one in records) / len(records),
        "answers": len(records),
        "lost": offered - len(records),
        "reordered": 0,
        "median_age_frames": statistics.median(ages),
        "p99_age_frames": sorted(ages)[int(0.99 * (len(ages) - 1))],
        "max_queue": longest,
        "levels": levels(records),
        "accuracy": accuracy(records),
        **_latencies(records),
    }


def _latencies(records: Sequence[Record]) -> dict[str, Any]:
    spent = sorted(one.ms for one in records)
    return {"latency_ms": percentiles(spent), "latencies_ms": spent}


def _showing(every_ms: float, seconds: float) -> tuple[str, int]:
    return f"a frame every {every_ms:.1f} ms", int(seconds * 1e3 / every_ms)


@contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def plot(found: dict[str, Any], path: Path) -> None:
    """Latency distributions on a logarithmic axis, with the budget's line."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name in RUNS:
        spent = found[name]["latencies_ms"]
        label = f"{name.replace('_', ' ')}: {found[name]['miss_rate']:.2%} missed"
        axes.plot(spent, [(row + 1) / len(spent) for row in range(len(spent))], label=label)
    axes.axvline(found["budget_ms"], color="black", linestyle="--", label=f"budget {found['budget_ms']:.1f} ms")
    axes.set(xscale="log", xlabel="capture to answer, ms", ylabel="share of answers", ylim=(0, 1))
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a minute in all")
    parser.add_argument("--nice", type=int, default=NICE, help=f"niceness of this process; {NICE} unless told")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="write the latencies as a picture")
    return parser


if __name__ == "__main__":
    sys.exit(main())
