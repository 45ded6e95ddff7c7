"""``edge-ravlm eval``: what a bundle finds, reads and leaves unanswered, on data that nothing learnt from."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge_ravlm.console import progress, say, say_json, table
from edge_ravlm.errors import needs_extra
from edge_ravlm.files import storing, write_file

if TYPE_CHECKING:
    from edge_ravlm.export.evaluation.outcome import Outcome


def evaluate(
    bundle: str,
    /,
    *,
    suite: Literal["traffic", "home", "easy-vqa"],
    flavor: str = "cpu-u8",
    quick: bool = False,
    report: Path | None = None,
    json: bool = False,
) -> None:
    """Judge a bundle as it ships, on the part of a data set that was held out.

    The traffic suite shows every sign once and asks about signs of meanings that nothing was trained on; home does the
    same with objects of a home; easy-vqa asks the official test questions. The data is fetched when it is not cached.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        suite: what to judge on.
        flavor: which of the bundle's quantization flavours.
        quick: judge on a small part, in about a minute.
        report: a folder for report.json, report.md and plots.
        json: print one JSON object.
    """
    from edge_ravlm.bundle import Bundle

    with needs_extra("export"):
        from edge_ravlm.export.evaluation.outcome import FULL, QUICK
        from edge_ravlm.export.evaluation.subject import opened
        from edge_ravlm.export.evaluation.suites import run

    if report is not None:  # found out now, and not after many minutes
        with _storing(report):
            report.mkdir(parents=True, exist_ok=True)
    with opened(Bundle.open(bundle), flavor) as subject:
        outcome = run(suite, subject, QUICK if quick else FULL, progress)
    if report is not None:
        _write(report, outcome, quick)
    if json:
        say_json({**outcome.summary(), "quick": quick})
    else:
        _show(outcome, quick)


def _write(folder: Path, outcome: Outcome, quick: bool) -> None:
    from edge_ravlm.machine import libraries, machine

    with needs_extra("export"):
        from edge_ravlm.export.evaluation.report import report_files

    files = report_files(outcome, {**machine(), **libraries(), "quick": quick})
    with _storing(folder):
        for name, data in files.items():
            write_file(folder / name, data)


def _storing(folder: Path) -> AbstractContextManager[None]:
    return storing(f"report '{folder}'", expected="a folder that can be written", do="choose another")


def _show(outcome: Outcome, quick: bool) -> None:
    from edge_ravlm.export.evaluation.outcome import meaning

    rows = [
        (name, f"{value:.4f}", f"{outcome.floors[name]:.4f}" if name in outcome.floors else "", meaning(name))
        for name, value in outcome.figures.items()
    ]
    table(f"{outcome.suite}: {outcome.subject}", ("figure", "measured", "guessing", "what it says"), rows)
    say(f"Judged on {', '.join(f'{count:,} {name}' for name, count in outcome.counts.items())}.")
    for remark in outcome.remarks:
        say(remark)
    if quick:
        say("Quick: a small part was judged, so the figures are coarse; leave out --quick for those to rely on.")
