"""The gate's report: JSON for machines, one Markdown page with plots for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edge_ravlm.export.parity import Figures, Gate

Files = dict[str, bytes]

FLOORS: Mapping[str, str] = {
    "cosine_mean": "0.991 (MinMax, plain rounding)",
    "cosine_p1": "0.944 (MinMax, plain rounding, minimum)",
}
"""What an off-the-shelf quantization reached, to be read beside the figures."""


def report_files(flavor: str, figures: Figures, gate: Gate, setting: Mapping[str, object]) -> Files:
    """The files of one flavour's report by their path in the bundle.

    Args:
        flavor: names the files: ``parity/<flavor>.json``, ``.md`` and ``.png``.
        figures: of the gate.
        gate: the limits they were held to.
        setting: machine, libraries and whatever else the figures depend on.
    """
    stem = f"parity/{flavor}"
    plain = {**msgspec.to_builtins(figures), "gate": msgspec.to_builtins(gate), "setting": dict(setting)}
    return {
        f"{stem}.json": msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n",
        f"{stem}.md": _page(flavor, figures, gate, setting).encode(),
        f"{stem}.png": _plots(flavor, figures),
    }


def _page(flavor: str, figures: Figures, gate: Gate, setting: Mapping[str, object]) -> str:
    rows = []
    for name in gate.__struct_fields__:
        limit, got = getattr(gate, name), getattr(figures, name)
        sign = "≤" if name.endswith("_loss") else "≥"
        shown = "not measured" if got is None else f"{got:.4f}"
        rows.append(f"| {name} | {shown} | {sign} {limit:g} | {FLOORS.get(name, '')} |")
    recalls = [f"| {who} | {r['1']:.4f} | {r['10']:.4f} |" for who, r in figures.recall.items()]
    times = [f"| {who} | {ms:.2f} |" for who, ms in figures.milliseconds.items()]
    verdict = "; ".join(figures.failures) or "every limit is met"
    quality = msgspec.to_builtins(figures.answering) if figures.answering is not None else {}
    worst = sorted(figures.sensitivity.items(), key=lambda item: -item[1])[:8]
    return "\n".join(
        [
            f"# Parity of `{flavor}` with full precision",
            "",
            f"{figures.images} held-out pictures, judged on the session `{figures.session}`: {verdict}.",
            "",
            f"![cosines, recall and time]({flavor}.png)",
            "",
            *_table(("figure", "measured", "limit", "floor"), rows),
            *_table(("recall of", "@1", "@10"), recalls),
            "`cross`: queries of this flavour against memories of `cpu-u8`.",
            "",
            *_table(("one picture, one thread", "median ms"), times),
            *_table(("answering rules, held out", "share"), [f"| {k} | {v:.4f} |" for k, v in quality.items()]),
            *_table(("layer, kept in floating point", "cosine won back"), [f"| `{k}` | {v:.5f} |" for k, v in worst]),
            *_table(("setting", ""), [f"| {k} | {v} |" for k, v in setting.items()]),
        ]
    )


def _table(columns: Sequence[str], rows: Sequence[str]) -> list[str]:
    """A Markdown table, or nothing where there are no rows."""
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *rows, ""] if rows else []


def _plots(flavor: str, figures: Figures) -> bytes:
    """Cosine histogram, recall and time bars, per-layer sensitivity, as one PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow to import, and only needed here

    layers = sorted(figures.sensitivity.items(), key=lambda item: item[1])[-10:]
    drawing = Figure(figsize=(13 if layers else 10, 3.2), layout="constrained")
    axes = drawing.subplots(1, 4 if layers else 3)
    looks = {"full looks": (figures.cosines, figures.cosine_p1)}
    if figures.glimpse_cosine_p1 is not None:
        looks["glimpses"] = (figures.glimpse_cosines, figures.glimpse_cosine_p1)
    for colour, (name, (cosines, p1)) in zip(("#4472a8", "#a87844"), looks.items(), strict=False):
        axes[0].hist(cosines, bins=40, color=colour, alpha=0.6, label=name)
        axes[0].axvline(p1, color=colour, linewidth=1)
    axes[0].set(title=f"{flavor}: cosine to FP32", xlabel="lines at the 1st percentiles", ylabel="pictures")
    axes[0].legend(fontsize=8)
    names = list(figures.recall)
    places = np.arange(len(names))
    for shift, k in ((-0.2, "1"), (0.2, "10")):
        axes[1].bar(places + shift, [figures.recall[name][k] for name in names], 0.4, label=f"recall@{k}")
    axes[1].set_xticks(places, names)
    axes[1].set(title="show-once retrieval", ylim=(0, 1))
    axes[1].legend(fontsize=8)
    axes[2].bar(list(figures.milliseconds), list(figures.milliseconds.values()), color="#7f9f5f")
    axes[2].set(title="one picture, one thread", ylabel="median ms")
    if layers:
        axes[3].barh([name[-28:] for name, _ in layers], [loss for _, loss in layers], color="#a87844")
        axes[3].set(title="kept in floating point", xlabel="cosine won back")
        axes[3].tick_params(axis="y", labelsize=6)
    out = io.BytesIO()
    drawing.savefig(out, format="png", dpi=80, metadata={"Software": None})
    return out.getvalue()
