"""A benchmark's report: the result for machines, one Markdown page and plots for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_ravlm.errors import needs_extra
from edge_ravlm.runtime.bench.loadgen import EXTRA
from edge_ravlm.runtime.bench.outcome import QUANTILES, Outcome, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Files = dict[str, bytes]

_BLUE, _GREY, _RED = "#4472a8", "#b0b0b0", "#c0504d"


def report_files(outcome: Outcome) -> Files:
    """The report's files by name: ``result.json``, ``report.md`` and plots."""
    plots = {"latency.png": _latencies(outcome), "waterfall.png": _waterfall(outcome)}
    return {"result.json": write(outcome), "report.md": _page(outcome, list(plots)).encode(), **plots}


def timings(outcome: Outcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows: the whole answer and each of its stages, in ms by percentile."""
    columns = [f"p{quantile:g}" for quantile in QUANTILES]
    every = {"answer": outcome.figures["latency_ms"], **outcome.figures["stages_ms"]}
    rows = [(name, *(f"{value:.2f}" for value in spent.values())) for name, spent in every.items()]
    return ("ms", *columns), rows


def others(outcome: Outcome) -> list[tuple[str, str]]:
    """Name and value of every other figure, each once; those inside another are named ``outer.inner``."""
    every = {**outcome.figures, **outcome.quality}  # a camera's figures hold its accuracy and answers as well
    return figure_rows({name: value for name, value in every.items() if name not in ("latency_ms", "stages_ms")})


def figure_rows(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Name and value of every figure for a table; those inside another are named ``outer.inner``."""
    found: list[tuple[str, str]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found += figure_rows(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, _shown(value)))
    return found


def _page(outcome: Outcome, plots: list[str]) -> str:
    verdict = "valid" if outcome.valid else f"not valid: {outcome.because}"
    lines = [f"# {outcome.scenario}: {outcome.setting['bundle']} ({verdict})", "", *_markdown(*timings(outcome)), ""]
    lines += [*_markdown(("figure", "value"), others(outcome)), ""]
    lines += [line for name in plots for line in (f"![{name.removesuffix('.png')}]({name})", "")]
    lines += [*_markdown(("setting", "value"), figure_rows(outcome.setting)), ""]
    return "\n".join(lines)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(columns), _line(["---"] * len(columns)), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latencies(outcome: Outcome) -> bytes:
    """The share of answers that had come by a time, with the budget if there is one."""
    drawing = _drawing(4.0)
    axes = drawing.subplots()
    spent = np.sort([record.ms for record in outcome.records])
    axes.plot(spent, np.arange(1, len(spent) + 1) / len(spent), color=_BLUE)
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        value = outcome.figures["latency_ms"][name]
        axes.plot(value, share, "o", color=_RED, markersize=4)
        axes.annotate(
            f"{name} {value:.1f} ms", (value, share), (-8, 4), textcoords="offset points", fontsize=8, ha="right"
        )
    if "budget_ms" in outcome.figures:
        budget = outcome.figures["budget_ms"]
        axes.axvline(budget, color="black", linestyle="--", label=f"budget {budget:g} ms")
        axes.legend(loc="lower right", fontsize=8)
    axes.set(
        xscale="log",
        xlabel="time to the answer, ms",
        ylabel="share of the answers",
        ylim=(0, 1.02),
        title=f"{outcome.scenario}: {len(spent):,} answers, accuracy {_shown(outcome.quality['accuracy'])}",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    return _png(drawing)


def _waterfall(outcome: Outcome) -> bytes:
    """Where an answer's time goes: each stage after the one before it, as their medians have it."""
    stages = outcome.figures["stages_ms"]
    drawing = _drawing(1.2 + 0.45 * max(1, len(stages)))
    axes, at = drawing.subplots(), 0.0
    for place, spent in enumerate(stages.values()):
        _stage(axes, place, at, spent)
        at += spent["p50"]
    axes.set_yticks(range(len(stages)), list(stages))
    axes.invert_yaxis()
    axes.set(xlabel="ms since the question (bars: median, lines: to the 99th percentile)", title="An answer's stages")
    axes.margins(x=0.18)
    axes.grid(alpha=0.3, axis="x")
    return _png(drawing)


def _stage(axes: Axes, place: int, at: float, spent: Mapping[str, float]) -> None:
    axes.barh(place, spent["p50"], left=at, color=_BLUE, height=0.6)
    axes.plot((at + spent["p50"], at + spent["p99"]), (place, place), color=_GREY, linewidth=2)
    told, where = f"{spent['p50']:.2f} to {spent['p99']:.2f}", (at + spent["p99"], place)
    axes.annotate(told, where, (4, -3), textcoords="offset points", fontsize=8)


def _drawing(height: float) -> Figure:
    """Empty; in inches."""
    with needs_extra(EXTRA):
        from matplotlib.figure import Figure  # noqa: PLC0415  # of an extra, and slow to load
    return Figure(figsize=(7, height), layout="constrained")


def _png(drawing: Figure) -> bytes:
    out = io.BytesIO()
    drawing.savefig(out, format="png", dpi=150)
    return out.getvalue()


def _shown(value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
