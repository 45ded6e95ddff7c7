"""What grows with what: latency and memory against entries, picture size, answer length and watches.

    python benchmarks/growth.py --json              [--quick] [--all] [--plot FILE.png]

Every point is taken in a process of its own, whose resident set at the end is ``rss_mb``. Each row of points is fitted
with a straight line and with a power; the one that explains more is given, with its R2 and its constants in units.

- ``memory``: entries against a search (k = 10), against opening, and against the resident set: mapped files count in
  it, ``anonymous_mb`` is what does not come from files. A million entries are measured with ``--all``, which keeps
  them in the cache folder, or where they are found there.
- ``image``: megapixels of the frame against its answer from memory, and against preprocessing alone; two frames are
  held at a time.
- ``length``: tokens written against writing them; the decoder is made to stop after so many.
- ``watches``: on one camera, against the time from a frame's capture to the last answer. Each has a region of its own,
  and so a look of its own; or all ask about the whole picture, which is looked at once (``shared_look_ms``).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from common import Bystanders, setting, setting_line, warn_of_company
from fits import Fit, fitted
from memory import data, scale
from synthetic import QUESTION, pictures, teach

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.cache import cache_folder
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.bench.meter import resident_mb
from edge_ravlm.runtime.encoders import ImageEncoder
from edge_ravlm.runtime.fusion.decoder import FusionDecoder
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.memory import Memory
from edge_ravlm.runtime.opening import open_memory
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.watching.lanes import Told, Watch
from edge_ravlm.runtime.watching.watcher import Watcher

FLAVOR, THREADS = "cpu-u8", 2

LARGEST = 1_000_000
"""Entries of the memory that is kept in the cache folder: building it takes minutes."""

_BUDGET_MS = 10_000.0
_REST_S = 0.01
_WARM_UP, _OPENS = 3, 9
_CAMERA = "camera"
_GRID = 4

_CODE = "the code on the crate is K7 P4 9B Q2 X8 M5 T1 Z6 R3 V0 L9 H4 W2 N8 J6"
_ASKED_CODE = "what is the code on the crate?"
"""Copied word by word this is longer than any answer may be."""

Point = dict[str, float]


@dataclass(frozen=True)
class Size:
    """Where points are taken.

    Attributes:
        entries, sides, tokens, watches: along each axis; sides are width and height.
        repeats: runs that each median is of.
    """

    entries: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000)
    sides: tuple[tuple[int, int], ...] = ((320, 180), (640, 360), (1280, 720), (1920, 1080), (3840, 2160))
    tokens: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24)
    watches: tuple[int, ...] = (1, 2, 4, 8, 16)
    repeats: int = 60


QUICK = Size((300, 1_000, 3_000), ((320, 180), (1280, 720), (3840, 2160)), (1, 4, 16), (1, 2, 4), repeats=4)


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        counts: its unit, for one.
        label: of the horizontal axis.
        scale: of both axes.
        title: what the panel shows.
        series: what is measured, by the name of the figure: how a legend calls it.
    """

    counts: str
    label: str
    scale: Literal["linear", "log"]
    title: str
    series: Mapping[str, str]


AXES = {
    "memory": Axis("entry", "entries", "log", "Searching", {"search_ms": "search, k = 10", "open_ms": "opening"}),
    "image": Axis(
        "megapixel", "megapixels", "log", "A larger frame", {"answer_ms": "answer", "preprocess_ms": "preprocessing"}
    ),
    "length": Axis("token", "tokens", "linear", "A longer answer", {"decode_ms": "writing"}),
    "watches": Axis(
        "watch",
        "watches",
        "linear",
        "More watches on one camera",
        {"own_region_ms": "each its own region", "shared_look_ms": "all the whole picture"},
    ),
}


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it runs; not to be quoted")
    parser.add_argument("--all", action="store_true", help=f"also {LARGEST:,} entries, built once: minutes")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="write the curves as a picture")
    arguments = parser.parse_args()
    try:
        found = measure(arguments.quick, largest=arguments.all)
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    warn_of_company(found["others_cpu_share"])
    if arguments.plot:
        plot(found, arguments.plot)
    if arguments.json:
        say_json(found)
    else:
        _show(found)
    return 0


def measure(quick: bool = False, *, largest: bool = False) -> dict[str, Any]:
    """All four axes: their points and fits.

    Args:
        quick: a few points of a few runs each.
        largest: also ``LARGEST`` entries, in the cache folder; without it only where they are there.
    """
    size = QUICK if quick else Size()
    others = Bystanders()
    kept = cache_folder() / f"benchmark-{LARGEST}.memory"
    entries = (*size.entries, LARGEST) if largest or (kept.exists() and not quick) else size.entries
    total = len(entries) + len(size.sides) + len(size.tokens) + len(size.watches)
    with tempfile.TemporaryDirectory(prefix="edge-ravlm-growth-") as scratch, progress("points", total) as advance:
        folder = Path(scratch)
        taught = folder / "taught.memory"
        fresh(_teach, taught)

        def points(take: Callable[..., Point], along: Iterable[tuple[Any, ...]]) -> list[Point]:
            found = []
            for where in along:
                found.append(fresh(take, *where, size.repeats))
                advance()
            return found

        folders = [built(kept if count == LARGEST else folder / f"{count}.memory", count) for count in entries]
        axes = {
            "memory": points(searching, zip(entries, folders, strict=True)),
            "image": points(looking, ((side, taught) for side in size.sides)),
            "length": points(writing, ((tokens,) for tokens in size.tokens)),
            "watches": points(watching, ((count, taught) for count in size.watches)),
        }
    return {
        **{name: _described(AXES[name], found) for name, found in axes.items()},
        "others_cpu_share": others.share(),
        "quick": quick,
        **setting(Bundle.open(STARTER), FLAVOR, THREADS),
    }


def fresh(take: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(take, arguments)


def built(folder: Path, entries: int) -> Path:
    """A memory of so many entries, built if it is not there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            images, _ = data.clustered(entries, 0, seed=1)
            with progress(f"{entries:,} entries") as advance:
                scale.build(Path(scratch) / "memory", images, images, advance)
            (Path(scratch) / "memory").rename(folder)  # whole or not at all
    return folder


def searching(entries: int, folder: Path, repeats: int) -> Point:
    """Open a memory and search it with vectors of its own."""
    opened, spent = list[float](), list[float]()
    for _ in range(_OPENS):
        start = time.perf_counter()
        with Memory.open(folder, scale.SPACES, read_only=True):
            opened.append(time.perf_counter() - start)
    with Memory.open(folder, scale.SPACES, read_only=True) as memory:
        step = max(1, entries // repeats)
        for query in memory.vectors("image", range(1, 1 + entries, step)):
            start = time.perf_counter()
            memory.search("image", query, data.K)
            spent.append(time.perf_counter() - start)
        return {"x": entries, "search_ms": _median_ms(spent), "open_ms": _median_ms(opened), **_resident()}


def looking(side: tuple[int, int], taught: Path, repeats: int) -> Point:
    """Answer frames of one size from memory."""
    cv2.setNumThreads(THREADS)
    shown = pictures(2, seed=2, size=side)
    answers = list[Answer]()
    with _opened(taught) as ravlm:
        for number in range(_WARM_UP + repeats):
            time.sleep(_REST_S)
            answers.append(ravlm.ask(Frame(shown[number % len(shown)]), QUESTION))
        timed = [answer.latency for answer in answers[_WARM_UP:]]
        return {
            "x": math.prod(side) / 1e6,
            "answer_ms": round(statistics.median(latency.total_ms for latency in timed), 4),
            "preprocess_ms": round(statistics.median(latency.stages_ms["preprocess"] for latency in timed), 4),
            **_resident(),
        }


def writing(longest: int, repeats: int) -> Point:
    """Write an answer of so many tokens, or of as many as the decoder has to say."""
    bundle = Bundle.open(STARTER)
    image, decoder = ImageEncoder(bundle, FLAVOR, THREADS), FusionDecoder(bundle, FLAVOR, THREADS)
    image.settle()
    decoder.spec = msgspec.structs.replace(decoder.spec, longest=longest)
    cells = image.look(image.preprocess(Frame(pictures(1, seed=2)[0]))).cells
    prompt = decoder.lay_out(_ASKED_CODE, [Passage(_CODE)] * decoder.spec.entries)
    state = decoder.prefill(prompt, cells)
    spent = list[float]()
    for _ in range(_WARM_UP + repeats):
        time.sleep(_REST_S)
        start = time.perf_counter()
        generated = decoder.generate(state)
        spent.append(time.perf_counter() - start)
    point = {"x": len(generated.tokens), "decode_ms": _median_ms(spent[_WARM_UP:]), **_resident()}
    image.close()
    decoder.close()
    return point


def watching(count: int, taught: Path, repeats: int) -> Point:
    """Answer so many watches about each frame of one camera."""
    cv2.setNumThreads(THREADS)
    shown = pictures(2, seed=2)
    names = [f"watch {number}" for number in range(count)]
    with _opened(taught) as ravlm:
        regions = dict(zip(names, _tiles(shown[0].shape[1], shown[0].shape[0]), strict=False))

        def own(frame: Frame, watch: Watch) -> Answer:
            return ravlm.ask(frame, QUESTION, region=regions[watch.name], budget_ms=watch.budget_ms)

        def shared(frame: Frame, watch: Watch) -> Answer:
            return ravlm.ask(frame, f"{QUESTION} ({watch.name})", budget_ms=watch.budget_ms)

        spent = {name: _watched(ask, names, shown, repeats) for name, ask in (("own", own), ("shared", shared))}
        return {"x": count, "own_region_ms": spent["own"], "shared_look_ms": spent["shared"], **_resident()}


def _watched(
    ask: Callable[[Frame, Watch], Answer], names: Sequence[str], shown: Sequence[Pixels], repeats: int
) -> float:
    """Median ms from a frame's capture until the last watch has its answer."""
    told: SimpleQueue[Told] = SimpleQueue()
    spent = list[float]()
    with Watcher(ask, [Watch(name, _CAMERA, _BUDGET_MS) for name in names], told.put) as watcher:
        for number in range(_WARM_UP + repeats):
            time.sleep(_REST_S)
            frame = Frame(shown[number % len(shown)], index=number, source=_CAMERA)
            watcher.offer(_CAMERA, frame)
            for _ in names:
                told.get()
            spent.append(time.monotonic() - frame.captured_at)
    return _median_ms(spent[_WARM_UP:])


def _tiles(width: int, height: int) -> list[Region]:
    """A grid of regions that covers a frame."""
    w, h = width // _GRID, height // _GRID
    return [Region.box(x, y, x + w, y + h) for y in range(0, h * _GRID, h) for x in range(0, w * _GRID, w)]


def _teach(folder: Path) -> None:
    with _opened(folder) as ravlm:
        teach(ravlm)


def _opened(folder: Path) -> Ravlm:
    bundle = Bundle.open(STARTER)
    ravlm = Ravlm(bundle, open_memory(bundle, folder), flavor=FLAVOR, budget_ms=_BUDGET_MS, threads=THREADS)
    ravlm.settle()
    return ravlm


def _resident() -> Point:
    """What this process holds now, in 1e6 bytes: all of it, and what does not come from files."""
    rss, anonymous = resident_mb()
    return {"rss_mb": round(rss, 1), "anonymous_mb": round(anonymous, 1)}


def _median_ms(spent: Sequence[float]) -> float:
    return round(statistics.median(spent) * 1e3, 4)


def _described(axis: Axis, points: Sequence[Point]) -> dict[str, Any]:
    """Points, and the fit of every figure on them."""
    fits = {name: _fit(points, name) for name in points[0] if name != "x"}
    return {
        "x": axis.label,
        "points": points,
        "fits": {name: fit.row(axis.counts, _unit(name)) for name, fit in fits.items()},
    }


def _fit(points: Sequence[Point], name: str) -> Fit:
    return fitted([point["x"] for point in points], [point[name] for point in points])


def _unit(figure: str) -> str:
    return "MB" if figure.endswith("_mb") else "ms"


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Four panels: latency on the left axis with its fits, the resident set on the right."""
    import matplotlib as mpl  # noqa: PLC0415  # slow to import, and only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, panels = plt.subplots(2, 2, figsize=(13, 10), constrained_layout=True)
    for (name, axis), panel in zip(AXES.items(), panels.flat, strict=True):
        points = found[name]["points"]
        xs = [point["x"] for point in points]
        line = np.geomspace(min(xs), max(xs), 100)
        for figure_name, called in axis.series.items():
            fit = _fit(points, figure_name)
            label = f"{called}: {fit.says(axis.counts, 'ms')} (R² {fit.r2:.2f})"
            (drawn,) = panel.plot(xs, [point[figure_name] for point in points], "o", label=label)
            panel.plot(line, fit.at(line), "-", color=drawn.get_color(), alpha=0.6)
        held, fit = panel.twinx(), _fit(points, "rss_mb")
        sizes = [point["rss_mb"] for point in points]
        held.plot(xs, sizes, "s--", color="grey", markersize=4, label=f"resident set: {fit.says(axis.counts, 'MB')}")
        held.set(ylabel="resident set, MB", ylim=(0, 1.15 * max(sizes)))
        panel.set(xlabel=axis.label, ylabel="median, ms", xscale=axis.scale, yscale=axis.scale)
        panel.set_title(_title(axis, points))
        panel.set_xticks(xs, [f"{x:,.3g}" if x < 1_000 else f"{x:,.0f}" for x in xs])
        panel.xaxis.minorticks_off()
        if axis.scale == "linear":
            panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        handles, labels = (of + more for of, more in zip(*map(_legend, (panel, held)), strict=True))
        panel.legend(handles, labels, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _legend(panel: Any) -> tuple[list[Any], list[str]]:
    handles, labels = panel.get_legend_handles_labels()
    return handles, labels


def _title(axis: Axis, points: Sequence[Point]) -> str:
    """What is seen, in a sentence."""
    first, last = points[0], points[-1]
    more, longer = (last[name] / first[name] for name in ("x", next(iter(axis.series))))
    return f"{axis.title}: {more:.3g} times the {axis.label}, {longer:.1f} times the time"


def _show(found: Mapping[str, Any]) -> None:
    for name, axis in AXES.items():
        points, fits = found[name]["points"], found[name]["fits"]
        columns = list(points[0])
        rows = [[f"{point[column]:.4g}" for column in columns] for point in points]
        table(f"{axis.title} (x: {axis.label})", columns, rows)
        for figure, fit in fits.items():
            say(f"  {figure}: {fit['says']} ({fit['model']}, R2 {fit['r2']:.3f})")
    say(setting_line(found))


if __name__ == "__main__":
    sys.exit(main())
