"""Everything that is claimed about speed, measured in one go: `make bench` (`make bench QUICK=1`, to see that it runs).

    python benchmarks/report.py build/bench          [--quick] [--only PART ...]

Each part is a process of its own, so that none finds the other's memory or caches. What they print is kept beside the
report: `report.json` (the figures that have an aim at the top, all others under their part), `report.md` and plots;
LoadGen's own files are in the folders of its scenarios.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from common import setting_line

from edge_ravlm.console import complain, say, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.files import write_file
from edge_ravlm.runtime.bench.report import figure_rows

HERE = Path(__file__).parent
COMMAND = str(Path(sys.executable).with_name("edge-ravlm"))

SCENARIO_S = {"single-stream": 45, "multi-stream": 20, "offline": 20, "camera": 20}
"""Seconds of each scenario; MLPerf's rules want ten minutes of LoadGen's, and the results say that these are none."""

QUICK_S = 2


@dataclass(frozen=True)
class Part:
    """A process that prints one JSON object.

    Attributes:
        name: of its figures in the report.
        command: what is run; ``{folder}`` is where it may leave plots.
        full, quick: what is added for the whole form, and for the short one.
    """

    name: str
    command: tuple[str, ...]
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)

    def run(self, folder: Path, *, quick: bool) -> dict[str, Any]:
        """Its figures.

        Raises:
            EdgeRavlmError: it failed; what it had to say is on stderr already.
        """
        words = (*self.command, *(self.quick if quick else self.full))
        words = tuple(word.replace("{folder}", str(folder)) for word in words)
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise EdgeRavlmError(
                f"part '{self.name}'",
                expected="figures",
                got=f"exit code {done.returncode}",
                do=f"run it alone: {' '.join(words)}",
            )
        return dict(msgspec.json.decode(done.stdout))


@dataclass(frozen=True)
class Aim:
    """A figure that is promised.

    Attributes:
        figure: its name at the top of the report; a dot goes inside.
        where: part and names that lead to it.
        accept, goal: what is wanted, and what is hoped for.
        more: whether more is better.
        what: in words.
        because: part and names of the figures that say why it is what it is.
    """

    figure: str
    where: tuple[str, ...]
    accept: float
    goal: float
    more: bool
    what: str
    because: tuple[tuple[str, ...], ...] = ()

    def verdict(self, value: float) -> str:
        """Whether it is reached, and by how much not."""
        for limit, name in ((self.goal, "goal"), (self.accept, "accepted")):
            if value >= limit if self.more else value <= limit:
                return name
        missed = self.accept / value if self.more else value / self.accept
        return f"missed: {missed:.2f} times off"


def _python(script: str, *more: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / script), "--json", *more)


def _scenario(name: str) -> Part:
    report = ("--scenario", name, "--report", f"{{folder}}/{name}", "--json", "-")
    return Part(
        name,
        (COMMAND, "bench", "starter", *report),
        full=("--seconds", str(SCENARIO_S[name])),
        quick=("--quick", "--seconds", str(QUICK_S)),
    )


PARTS = (
    Part("peers", _python("peers/side_by_side.py")),
    Part("limits", _python("limits.py")),
    Part("main_job", _python("main_job.py")),
    *map(_scenario, SCENARIO_S),
    Part("memory", _python("memory_peers.py", "--plot", "{folder}/memory.png")),
    Part("growth", _python("growth.py", "--plot", "{folder}/growth.png")),
)

AIMS = (
    Aim(
        "ratio_vs_textbook_p50", ("peers", "ratio_vs_textbook_p50"), 25, 40, True,
        "720p frame to retrieved answer: ResNet-50 + BERT-base + brute force in PyTorch eager, times as long",
        (("peers", "ours", "retrieved", "stages_p50_ms"), ("peers", "peers", "textbook", "stages_p50_ms")),
    ),
    Aim(
        "ratio_vs_clip_ort_p50", ("peers", "ratio_vs_clip_ort_p50"), 15, 25, True,
        "… CLIP ViT-B/32 in ONNX Runtime FP32 + USearch, times as long",
        (("peers", "ours", "retrieved", "stages_p50_ms"), ("peers", "peers", "clip_ort", "stages_p50_ms")),
    ),
    Aim(
        "p99_over_p50", ("main_job", "p99_over_p50"), 2, 1.5, False,
        "… ours: 99th percentile over median, of 300 frames (p99 are those that took a second look)",
        (("main_job", "stages_p50_ms"),),
    ),
    Aim(
        "encoder_over_floor", ("limits", "encoder_over_floor"), 1.8, 1.5, False,
        "one look of the INT8 encoder over the time of its multiply-adds at this machine's INT8 matrix rate",
        (("limits", "kinds"),),
    ),
    Aim("memory_1m.open_ms", ("memory", "memory_1m", "open_ms"), 50, 20, False, "a million memories: open, ms"),
    Aim("memory_1m.recall10", ("memory", "memory_1m", "recall10"), 0.99, 0.99, True, "… recall@10 against exact"),
    Aim("memory_1m.p99_ms", ("memory", "memory_1m", "p99_ms"), 2.5, 1.5, False, "… search with re-ranking, p99 in ms"),
    Aim(
        "memory_1m.anon_fraction", ("memory", "memory_1m", "anon_fraction"), 0.1, 0.1, False,
        "… memory that no file backs, as a share of the files",
    ),
    Aim("start_to_first_answer_s", ("main_job", "start_to_first_answer_s"), 0.8, 0.8, False, "start to answer, s"),
)  # fmt: skip


def main() -> int:
    """Run it all, write it down, and say what has an aim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for the report")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it runs; not to be quoted")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="run these parts alone")
    arguments = parser.parse_args()
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        found = measured(arguments.folder, arguments.quick, arguments.only or [part.name for part in PARTS])
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    rows = _verdicts(found)
    write_file(arguments.folder / "report.json", msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    write_file(arguments.folder / "report.md", _page(found, rows, arguments.folder).encode())
    table("What is promised", ("figure", "measured", "wanted", "goal", ""), [row[:5] for row in rows])
    if arguments.quick:
        say("Quick: it ran. None of these figures may be quoted.")
    say(f"{arguments.folder}/report.md")
    return 0


def measured(folder: Path, quick: bool, names: Sequence[str]) -> dict[str, Any]:
    """All parts' figures, and those with an aim at the top."""
    parts: dict[str, Any] = {}
    for part in PARTS:
        if part.name in names:
            complain(f"{part.name} …")
            began = time.monotonic()
            parts[part.name] = part.run(folder, quick=quick)
            parts[part.name]["took_s"] = round(time.monotonic() - began, 1)
    top: dict[str, Any] = {}
    for aim in AIMS:
        if aim.where[0] in parts:
            outer, _, inner = aim.figure.partition(".")
            value = _value(parts, aim)
            if inner:
                top.setdefault(outer, {})[inner] = value
            else:
                top[outer] = value
    return {"quick": quick, **top, "parts": parts}


def _value(parts: Mapping[str, Any], aim: Aim) -> float | None:
    """None where a short form left it out."""
    try:
        found = _at(parts, aim.where)
    except KeyError:
        return None
    return float(found)


def _at(parts: Mapping[str, Any], where: Sequence[str]) -> Any:
    found: Any = parts
    for name in where:
        found = found[name]
    return found


def _verdicts(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Figure, value, wanted, goal, verdict, meaning, and what it is made of."""
    rows = list[tuple[str, ...]]()
    for aim in AIMS:
        if aim.where[0] not in found["parts"]:
            continue
        value, sign = _value(found["parts"], aim), "≥" if aim.more else "≤"
        if value is None:
            continue
        why = "; ".join(_brief(found["parts"], where) for where in aim.because)
        wanted = (f"{sign} {aim.accept:g}", f"{sign} {aim.goal:g}")
        rows.append((aim.figure, f"{value:.4g}", *wanted, aim.verdict(value), aim.what, why))
    return rows


def _brief(parts: Mapping[str, Any], where: Sequence[str]) -> str:
    found = _at(parts, where)
    if isinstance(found, Mapping):
        shown = [f"{name} {value}" for name, value in figure_rows({k: v for k, v in found.items() if _is_figure(v)})]
    else:
        shown = [", ".join(f"{name} {value}" for name, value in row.items()) for row in found[:4]]
    return f"{where[-1] if len(where) < 3 else where[2]}: {', '.join(shown)}"


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float)


def _page(found: Mapping[str, Any], rows: Sequence[Sequence[str]], folder: Path) -> str:
    lines = ["# Benchmarks" + (" (quick: not to be quoted)" if found["quick"] else ""), ""]
    lines += ["| figure | measured | wanted | goal | | what it is |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row[:6])} |" for row in rows]
    lines += ["", *(f"- `{row[0]}`: {row[6]}" for row in rows if row[4].startswith("missed") and row[6]), ""]
    for name, part in found["parts"].items():
        lines += [f"## {name} ({part['took_s']:.0f} s)", ""]
        if (folder / name / "report.md").is_file():
            lines += [f"[Report]({name}/report.md)", "", f"![latency]({name}/latency.png)", ""]
            lines += [f"![waterfall]({name}/waterfall.png)", ""] if name == "single-stream" else []
            continue
        if (folder / f"{name}.png").is_file():
            lines += [f"![{name}]({name}.png)", ""]
        plain = {key: value for key, value in part.items() if not isinstance(value, list) and key not in _SETTING}
        told = [row for row in figure_rows(plain) if ".environment." not in row[0]]  # report.json has those
        lines += ["| figure | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in told), ""]
    first = next((part for part in found["parts"].values() if "bundle_sha256" in part), None)
    return "\n".join([*lines, setting_line(first) if first is not None else "", ""])


_SETTING = ("machine", "libraries", "threads", "precision", "bundle_sha256", "quality")


if __name__ == "__main__":
    sys.exit(main())
