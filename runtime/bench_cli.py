"""``edge-ravlm bench``: how fast a bundle answers on this machine, and how well; and whether that changed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import UsageError, needs_extra
from edge_ravlm.files import storing, write_file

if TYPE_CHECKING:
    from edge_ravlm.runtime.bench.outcome import Outcome

app = cyclopts.App(name="bench")

DEFAULT_REPORT = Path("edge-ravlm-bench")


@app.default
def bench(
    bundle: str = "starter",
    /,
    *,
    scenario: Literal["single-stream", "multi-stream", "offline", "camera"] = "single-stream",
    quick: bool = False,
    seconds: float | None = None,
    streams: int = 4,
    workers: int = 1,
    threads: int | None = None,
    flavor: str = "cpu-u8",
    generate: bool = False,
    fps: float = 10.0,
    budget_ms: float = 100.0,
    report: Path = DEFAULT_REPORT,
    json: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Measure a bundle on questions about the package's clip, whose right answers are known.

    MLPerf's LoadGen drives single-stream (one question after the other), multi-stream (several at once) and offline
    (all at once), and judges whether the run is valid: ten minutes by its rules. Camera shows frames at their own pace
    and holds answers against a budget.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        scenario: what to measure.
        quick: measure for some seconds only, which is no valid run.
        seconds: how long to measure; unless told, ten minutes as the rules want, or 5 seconds with --quick.
        streams: questions that come at once in multi-stream.
        workers: threads that answer what comes at once.
        threads: CPU threads of the models; unless told, up to four.
        flavor: which of the bundle's quantization flavours.
        generate: let the fusion decoder write the answers in words.
        fps: frames a second, in camera.
        budget_ms: milliseconds from a frame's capture to its answers, in camera.
        report: a folder for LoadGen's files, a Markdown page and plots.
        json: a file for the result, which 'bench compare' reads; '-' prints one object without the single answers.
    """
    from edge_ravlm.bundle import Bundle
    from edge_ravlm.runtime.bench.loadgen import EXTRA, RULES_S, Rules
    from edge_ravlm.runtime.bench.outcome import write
    from edge_ravlm.runtime.bench.running import QUICK_S, Wish, run

    with needs_extra(EXTRA):
        if find_spec("matplotlib") is None:  # found out now, but loaded when all was measured: it takes memory
            raise ModuleNotFoundError(name="matplotlib")
    lasting = seconds if seconds is not None else QUICK_S if quick else RULES_S
    wish = Wish(
        scenario=scenario,
        rules=Rules(seconds=lasting, streams=streams, workers=workers, quick=quick),
        flavor=flavor,
        threads=threads,
        generate=generate,
        fps=fps,
        budget_ms=budget_ms,
    )
    opened = Bundle.open(bundle)
    if json is not None and json.is_dir():
        raise UsageError("--json", expected="a file's name", got=f"the folder '{json}'", do="name a file in it")
    with _storing(report):  # found out now, and not after ten minutes
        for folder in (report, *([json.parent] if json is not None else [])):
            folder.mkdir(parents=True, exist_ok=True)
    outcome = run(opened, wish, report, progress)
    from edge_ravlm.runtime.bench.report import report_files

    files = {report / name: data for name, data in report_files(outcome).items()}
    if json is not None and str(json) != "-":
        files[json] = write(outcome)
    with _storing(report):
        for path, data in files.items():
            write_file(path, data)
    if json is not None and str(json) == "-":
        say_json(outcome.summary())
    else:
        _show(outcome, report)


@app.command
def compare(
    before: Path,
    after: Path,
    /,
    *,
    tolerance: Annotated[float, Parameter(validator=cyclopts.validators.Number(gte=0))] = 0.1,
    json: bool = False,
) -> int:
    """Tell whether a result is slower or worse than an earlier one, beyond noise; exit code 1 if it is.

    Args:
        before: a file that 'bench --json FILE' wrote.
        after: another one, of a later run.
        tolerance: share by which times may grow, and accuracy fall, unnoticed.
        json: print one JSON object.
    """
    from msgspec import to_builtins

    from edge_ravlm.runtime.bench import outcome
    from edge_ravlm.runtime.bench.compare import compare as compared
    from edge_ravlm.runtime.bench.compare import differences

    first, second = outcome.read(before), outcome.read(after)
    changes, settings = compared(first, second, tolerance), differences(first, second)
    is_worse = any(change.worse for change in changes)
    if json:
        say_json({"worse": is_worse, "tolerance": tolerance, "changes": to_builtins(changes), "settings": settings})
        return int(is_worse)
    rows = [(c.figure, f"{c.change:.3f}", f"{c.low:.3f} to {c.high:.3f}", "worse" if c.worse else "") for c in changes]
    table(
        "After against before (times: ratio, as multiples of the yardstick)", ("figure", "", "99 % interval", ""), rows
    )
    for line in settings:
        complain(f"differs: {line}")
    return int(is_worse)


def _storing(report: Path) -> AbstractContextManager[None]:
    return storing(f"report '{report}'", expected="a folder that can be written", do="choose another")


def _show(outcome: Outcome, report: Path) -> None:
    from edge_ravlm.runtime.bench.report import others, timings

    columns, rows = timings(outcome)
    table(f"{outcome.scenario}: {outcome.setting['bundle']}, {outcome.setting['threads']} threads", columns, rows)
    table("", ("figure", "value"), [row for row in others(outcome) if not row[0].startswith(("loadgen.", "parity."))])
    if not outcome.valid:
        say(f"Not a valid run: {outcome.because}.")
    say(f"{report}: report.md, plots, result.json" + ("." if outcome.scenario == "camera" else ", LoadGen's files."))
