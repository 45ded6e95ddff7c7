"""The front of recall and latency, a panel for each size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from memory.systems import OURS

_LEAST = 1e-4
"""A thousand searches for ten neighbours each tell no smaller shares."""

_COLOURS = ("#4472a8", "#8c6bb1", "#4a9a6a", "#d0893b", "#7f7f7f")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Every operating point of every system; ours is the thick line, and as it comes the large dot."""
    sizes = found["sizes"]
    drawing = Figure(figsize=(5.2 * len(sizes), 4.4), layout="constrained")
    panels = drawing.subplots(1, len(sizes), squeeze=False)[0]
    names = list(dict.fromkeys(name for systems in sizes.values() for name in systems))
    others = dict(zip([name for name in names if name != OURS], _COLOURS, strict=False))
    for axes, (count, systems) in zip(panels, sorted(sizes.items(), key=lambda item: int(item[0])), strict=True):
        for name, of in systems.items():
            line = of["points"][1:] if name == OURS else of["points"]  # all in one thread
            points = sorted(line, key=lambda point: float(point["recall10"]))
            missed, medians = [_missed(point) for point in points], [point["p50_ms"] for point in points]
            colour, width = ("#c0504d", 2.5) if name == OURS else (others[name], 1.2)
            axes.plot(missed, medians, "o-", color=colour, linewidth=width, markersize=4, label=name)
            axes.vlines(missed, medians, [point["p99_ms"] for point in points], color=colour, alpha=0.35)
        usual = systems[OURS]["points"][0]
        axes.plot(_missed(usual), usual["p50_ms"], "o", color="#c0504d", markersize=9)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(0.5, _LEAST / 1.5),
            xlabel=f"1 - recall@10 (to the right: finds more; {_LEAST:g} or less is drawn there)",
            ylabel="one search, ms (dot: median, line: to the 99th percentile)",
            title=f"{int(count):,} vectors of {found['dim']}",
        )
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    drawing.savefig(path, dpi=150)


def _missed(point: Mapping[str, Any]) -> float:
    return max(_LEAST, 1 - float(point["recall10"]))
