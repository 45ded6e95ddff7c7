"""Does the deadline hold? The watching runtime beside a plain loop, with the same models, frames and load.

    python benchmarks/deadline.py --json            5 minutes at nominal rate, 1 at overload, 1 in a plain loop
    python benchmarks/deadline.py --quick           a minute in all
    python benchmarks/deadline.py --plot FILE.png   the latencies, with the budget's line

A camera gives the frames of the package's own clip, round and round, and "is the gate open?" is asked about a region of
every frame. First the median of a question alone is measured (``p50_ms``); the budget is 1.5 times that.

- ``nominal``: frames come at twice the median.
- ``overload``: frames come twice as fast as the median, and another process keeps one core busy.
- ``plain_loop``: the same overload through the obvious loop: every frame in order, as fast as it goes, from a queue
  that holds what came meanwhile.

A miss is an answer that was given later after its frame's capture than the budget. The age is how many frames before
its own the picture was that an answer rests on; in the plain loop, how many frames had been captured since. Accuracy is
that of the answers given, held ones included, on the frames that they were given for.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from common import setting, setting_line

import edge_ravlm
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.demo import Thing, load_clip
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.watching.lanes import Told, Watch
from edge_ravlm.runtime.watching.watcher import Watcher, unhurried_collection

FLAVOR, THREADS = "cpu-u8", 2
CAMERA = "yard"
BUDGET_OVER_P50 = 1.5
NOMINAL, OVERLOAD = 2.0, 0.5
"""Time between two frames over the median of an answer."""

_MEASURED, _WARM_UP = 120, 20


def main() -> int:
    """Run it and say what came out."""
    arguments = _parser().parse_args()
    try:
        found = measured(arguments.quick)
    except EdgeRavlmError as error:
        complain(str(error))
        return 1
    if arguments.plot:
        plot(found, arguments.plot)
    rows = {name: found[name] for name in ("nominal", "overload", "plain_loop")}
    for row in rows.values():
        row.pop("latencies_ms")
    if arguments.json:
        say_json(found)
    else:
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        table(
            f"A budget of {found['budget_ms']:.1f} ms, 1.5 times the median of {found['p50_ms']:.1f} ms",
            ("", *columns),
            [(name, *(_shown(row.get(key)) for key in columns)) for name, row in rows.items()],
        )
        say(setting_line(found))
    return 0


@dataclass(frozen=True)
class Scene:
    """What is asked about.

    Attributes:
        frames: uint8 [h, w, 3] BGR.
        thing: its question, region and true states.
    """

    frames: Sequence[Pixels]
    thing: Thing

    def ask(self, ravlm: Ravlm, frame: Frame, budget_ms: float) -> Answer:
        """One question, answered as well as the budget allows."""
        return ravlm.ask(frame, self.thing.question, region=self.thing.box(), budget_ms=budget_ms, hold=False)

    def is_right(self, index: int, answer: Answer) -> bool | None:
        """Whether it is true of that frame; None where nothing is."""
        truth = self.thing.truth(index % len(self.frames))
        return None if truth is None else answer.text == truth


def measured(quick: bool) -> dict[str, Any]:
    """All three runs."""
    with edge_ravlm.load("starter", threads=THREADS) as ravlm:
        scene = _taught(ravlm)
        p50_ms = _median_ms(ravlm, scene)
        budget_ms = BUDGET_OVER_P50 * p50_ms
        seconds = (20.0, 20.0, 10.0) if quick else (300.0, 60.0, 60.0)
        with unhurried_collection():
            nominal = _watched(ravlm, scene, budget_ms, NOMINAL * p50_ms, seconds[0])
            with _busy_core():
                overload = _watched(ravlm, scene, budget_ms, OVERLOAD * p50_ms, seconds[1])
                plain = _plain_loop(ravlm, scene, budget_ms, OVERLOAD * p50_ms, seconds[2])
        return {
            "p50_ms": round(p50_ms, 3),
            "budget_ms": round(budget_ms, 3),
            "nominal": nominal,
            "overload": overload,
            "plain_loop": plain,
            "quick": quick,
            **setting(ravlm.bundle, FLAVOR, THREADS),
        }


def _taught(ravlm: Ravlm) -> Scene:
    path, clip = load_clip()
    with open_camera(path) as camera:
        frames = [frame.pixels for frame in camera.frames()]
    thing = next(one for one in clip.things if one.name == "gate")
    for state, rows in clip.teach[thing.name].items():
        for row in rows:
            ravlm.remember(frames[row], thing.states[state], region=thing.box())
    return Scene(frames, thing)


def _median_ms(ravlm: Ravlm, scene: Scene) -> float:
    spent = []
    for index, pixels in enumerate(scene.frames[: _WARM_UP + _MEASURED]):
        began = time.perf_counter()
        scene.ask(ravlm, Frame(pixels, index=index, source=CAMERA), 1e6)
        spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent[_WARM_UP:])


def _watched(ravlm: Ravlm, scene: Scene, budget_ms: float, every_ms: float, seconds: float) -> dict[str, Any]:
    watch, told, waiting = Watch("gate", CAMERA, budget_ms), list[Told](), list[int]()

    def ask(frame: Frame, of: Watch) -> Answer:
        return scene.ask(ravlm, frame, of.budget_ms)

    with Watcher(ask, [watch], told.append) as watcher:

        def offer(frame: Frame) -> None:
            watcher.offer(CAMERA, frame)
            waiting.append(watcher.waiting)

        offered = _play(scene.frames, every_ms, seconds, offer)
        watcher.close()
        guard_ms = watcher.guard_ms
    indices = [one.index for one in told]
    late = [one for one in told[1:] if one.is_late]  # there is nothing to hold before the first
    return {
        "miss_rate": len(late) / max(1, len(told) - 1),
        "answers": len(told),
        "lost": offered - len(set(indices)),
        "reordered": sum(a > b for a, b in pairwise(indices)),
        "median_age_frames": statistics.median(one.age_frames for one in told),
        "p99_age_frames": sorted(one.age_frames for one in told)[int(0.99 * (len(told) - 1))],
        "max_queue": max(waiting),
        "levels": _shares(str(one.answer.level) for one in told),
        "accuracy": _accuracy([scene.is_right(one.index, one.answer) for one in told]),
        "guard_ms": round(guard_ms, 3),
        **_latencies([one.answer.latency.total_ms for one in told]),
    }


def _plain_loop(ravlm: Ravlm, scene: Scene, budget_ms: float, every_ms: float, seconds: float) -> dict[str, Any]:
    queue: deque[Frame] = deque()
    there, longest = threading.Condition(), 0
    answers, ages, rights = list[Answer](), list[int](), list[bool | None]()
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
            answer = scene.ask(ravlm, frame, budget_ms)
            answers.append(answer)
            ages.append(newest - frame.index)
            rights.append(scene.is_right(frame.index, answer))

    loop = threading.Thread(target=answer_all)
    loop.start()
    offered = _play(scene.frames, every_ms, seconds, offer)
    with there:
        ended = True
        there.notify()
    loop.join()
    return {
        "miss_rate": sum(not one.latency.met for one in answers) / len(answers),
        "answers": len(answers),
        "lost": offered - len(answers),
        "reordered": 0,
        "median_age_frames": statistics.median(ages),
        "p99_age_frames": sorted(ages)[int(0.99 * (len(ages) - 1))],
        "max_queue": longest,
        "levels": _shares(str(one.level) for one in answers),
        "accuracy": _accuracy(rights),
        **_latencies([one.latency.total_ms for one in answers]),
    }


def _play(frames: Sequence[Pixels], every_ms: float, seconds: float, offer: Callable[[Frame], None]) -> int:
    """Be the camera; returns how many frames there were."""
    began, count = time.monotonic(), int(seconds * 1e3 / every_ms)
    with progress(f"a frame every {every_ms:.1f} ms", count) as advance:
        for index, pixels in zip(range(count), cycle(frames), strict=False):
            wait_s = began + index * every_ms / 1e3 - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            offer(Frame(pixels, index=index, source=CAMERA))
            if index % 64 == 0:
                advance(completed=index)
    return count


@contextmanager
def _busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _latencies(spent: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(spent)
    shown = {f"p{name}_ms": ordered[int(share * (len(ordered) - 1))] for name, share in _QUANTILES.items()}
    return {**{name: round(value, 3) for name, value in shown.items()}, "latencies_ms": ordered}


_QUANTILES = {"50": 0.5, "99": 0.99, "99_9": 0.999}


def _shares(levels: Iterator[str]) -> dict[str, float]:
    counts = Counter(levels)
    return {level: round(count / counts.total(), 4) for level, count in counts.most_common()}


def _accuracy(rights: Sequence[bool | None]) -> float:
    known = [right for right in rights if right is not None]
    return round(sum(known) / max(1, len(known)), 4)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {share:.1%}" for name, share in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plot(found: dict[str, Any], path: Path) -> None:
    """Latency distributions on a logarithmic axis, with the budget's line."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name in ("nominal", "overload", "plain_loop"):
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
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="write the latencies as a picture")
    return parser


if __name__ == "__main__":
    sys.exit(main())
