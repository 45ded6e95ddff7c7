"""A suite's report: JSON for machines, one Markdown page with plots for people."""

from __future__ import annotations

import io
from collections.abc import Mapping

import msgspec
import numpy as np
from matplotlib.figure import Figure

from edge_ravlm.export.evaluation.outcome import Confidences, Outcome, meaning
from edge_ravlm.export.evaluation.scores import aurc, calibration_error, reliability, risk_coverage

Files = dict[str, bytes]

_BLUE, _GREY, _RED = "#4472a8", "#b0b0b0", "#c0504d"


def report_files(outcome: Outcome, setting: Mapping[str, object]) -> Files:
    """The report's files by name: ``report.json``, ``report.md`` and plots.

    Args:
        outcome: of a suite.
        setting: machine, libraries and whatever else the figures depend on.
    """
    plots: Files = {}
    if outcome.floors:
        plots["floors.png"] = _floors(outcome)
    if outcome.confidences is not None:
        plots["risk_coverage.png"] = _risk(outcome.confidences)
        plots["reliability.png"] = _reliability(outcome.confidences)
    plain = {**outcome.summary(), "setting": dict(setting)}
    return {
        "report.json": msgspec.json.format(msgspec.json.encode(plain, enc_hook=str), indent=1) + b"\n",
        "report.md": _page(outcome, setting, list(plots)).encode(),
        **plots,
    }


def _page(outcome: Outcome, setting: Mapping[str, object], plots: list[str]) -> str:
    figures = [
        f"| {name} | {value:.4f} | {'' if name not in outcome.floors else f'{outcome.floors[name]:.4f}'} "
        f"| {meaning(name)} |"
        for name, value in outcome.figures.items()
    ]
    counts = [f"| {name} | {count:,} |" for name, count in outcome.counts.items()]
    return "\n".join(
        [
            f"# Suite `{outcome.suite}`: {outcome.subject}",
            "",
            *(line for remark in outcome.remarks for line in (remark, "")),
            "| figure | measured | guessing | what it says |",
            "| --- | --- | --- | --- |",
            *figures,
            "",
            *(line for name in plots for line in (f"![{name.removesuffix('.png')}]({name})", "")),
            "| judged on | |",
            "| --- | --- |",
            *counts,
            "",
            "| setting | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in setting.items()),
            "",
        ]
    )


def _floors(outcome: Outcome) -> bytes:
    """What was measured beside what guessing reaches."""
    names = list(outcome.floors)
    drawing = Figure(figsize=(7, 1 + 0.45 * len(names)), layout="constrained")
    axes, places = drawing.subplots(), np.arange(len(names))
    for shift, color, label, values in (
        (-0.2, _BLUE, "measured", outcome.figures),
        (0.2, _GREY, "guessing", outcome.floors),
    ):
        bars = axes.barh(places + shift, [values[name] for name in names], 0.4, color=color, label=label)
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), title=f"{outcome.suite}: {outcome.subject}")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(drawing)


def _risk(confidences: Confidences) -> bytes:
    risk = risk_coverage(confidences.confidence, confidences.right)
    drawing = Figure(figsize=(5, 3.6), layout="constrained")
    axes = drawing.subplots()
    axes.plot(np.arange(1, len(risk) + 1) / len(risk), risk, color=_BLUE)
    axes.axhline(1 - confidences.right.mean(), color=_GREY, linewidth=1, linestyle="--", label="confidence of no use")
    area = aurc(confidences.confidence, confidences.right)
    axes.set(
        title=f"Risk and coverage, area {area:.3f}",
        xlabel="share of questions answered, the surest first",
        ylabel="share of wrong answers",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(fontsize=8)
    return _png(drawing)


def _reliability(confidences: Confidences) -> bytes:
    rows = reliability(confidences.confidence, confidences.right)
    most = max(n for _, _, n in rows)
    drawing = Figure(figsize=(5, 3.6), layout="constrained")
    axes = drawing.subplots()
    axes.plot((0, 1), (0, 1), color=_GREY, linewidth=1, linestyle="--", label="as sure as right")
    sizes = [20 + 180 * n / most for _, _, n in rows]
    axes.plot([told for told, _, _ in rows], [was for _, was, _ in rows], color=_BLUE, linewidth=1)
    axes.scatter([told for told, _, _ in rows], [was for _, was, _ in rows], sizes, color=_RED, zorder=3)
    error = calibration_error(confidences.confidence, confidences.right)
    axes.set(
        title=f"Reliability, calibration error {error:.3f}",
        xlabel="confidence (dots as large as their share of answers)",
        ylabel="share of right answers",
        xlim=(0, 1.05),
        ylim=(-0.05, 1.05),
    )
    axes.legend(fontsize=8, loc="upper left")
    return _png(drawing)


def _png(drawing: Figure) -> bytes:
    out = io.BytesIO()
    drawing.savefig(out, format="png", dpi=100, metadata={"Software": None})
    return out.getvalue()
