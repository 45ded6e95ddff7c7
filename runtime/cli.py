"""The runtime's commands: demo, ask, run, memory, search, doctor. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyclopts

from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import UsageError
from edge_ravlm.runtime import bench_cli, memory_cli

if TYPE_CHECKING:
    from edge_ravlm.runtime.answer import Answer
    from edge_ravlm.runtime.apps.demo import Outcome

app = cyclopts.App()
app.command(bench_cli.app)
app.command(memory_cli.app)
app.command(memory_cli.search)

DEFAULT_SHEET = Path("edge-ravlm-demo.jpg")


@app.command
def demo(
    *,
    bundle: str = "starter",
    budget_ms: float = 100.0,
    sheet: Path = DEFAULT_SHEET,
    json: bool = False,
) -> None:
    """Teach a yard camera three things from a few frames each, then ask about the rest of the clip.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        budget_ms: from a frame's capture to its answer.
        sheet: where to write a contact sheet to look at.
        json: print one JSON object.
    """
    from edge_ravlm.runtime.apps.demo import check_sheet, load_clip, run_demo, write_sheet
    from edge_ravlm.runtime.pipeline import load

    check_sheet(sheet)
    with load(bundle, budget_ms=budget_ms) as ravlm, progress("watching the clip", load_clip()[1].frames) as advance:
        outcome = run_demo(ravlm, advance)
    write_sheet(outcome.sheet, sheet)
    if json:
        say_json({**outcome.summary(), "sheet": str(sheet)})
    else:
        _show(outcome, sheet)


@app.command
def ask(
    bundle: str,
    question: str,
    /,
    *,
    memory: Path,
    image: Path,
    region: str | None = None,
    tag: memory_cli.Tags = None,
    budget_ms: float = 100.0,
    generate: bool | None = None,
    hops: int = 1,
    json: bool = False,
) -> None:
    """Answer a question about one picture from a memory.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        question: one sentence.
        memory: the memory's folder.
        image: the picture.
        region: x0,y0,x1,y1 or NAME=x0,y0,x1,y1; look only here.
        tag: NAME=VALUE, use only memories with that tag.
        budget_ms: from reading the picture to the answer.
        generate: let the fusion decoder write the answer, or forbid it; else the runtime chooses.
        hops: how often a generated answer may search the memory, 1 or 2.
        json: print one JSON object.
    """
    from edge_ravlm.frames import Frame, Region, read_image
    from edge_ravlm.runtime.memory import Where

    where = Where(tags=memory_cli.parse_tags(tag))
    looked_at = None if region is None else Region.parse(region)
    picture = read_image(image)
    with memory_cli.load_to_ask(bundle, memory, budget_ms=budget_ms) as ravlm:
        answer = ravlm.ask(Frame(picture.pixels), question, region=looked_at, where=where, generate=generate, hops=hops)
    if json:
        say_json(answer.as_dict())
    else:
        _tell(answer)


@app.command
def run(
    app: Path | None = None,
    /,
    *,
    source: str | None = None,
    ask: list[str] | None = None,
    memory: Path | None = None,
    bundle: str = "starter",
    region: str | None = None,
    budget_ms: float = 100.0,
    frames: memory_cli.Count = 0,
    trace: Path | None = None,
    json: bool = False,
) -> int:
    """Watch cameras and answer questions about their frames until they end, or until Ctrl-C or SIGTERM.

    Args:
        app: a TOML file with cameras, watches and sinks (see the README); it may be changed while it runs. Without it
            one camera is watched, as the options say.
        source: a file, a folder of images, a webcam index, an rtsp:// or http:// address, or gst:PIPELINE.
        ask: a question, any number of times.
        memory: the memory's folder.
        bundle: a folder, a .zip, or 'starter'.
        region: x0,y0,x1,y1 or NAME=x0,y0,x1,y1; look only here.
        budget_ms: from a frame's capture to its answer.
        frames: stop after this many; 0 goes on until the source ends.
        trace: with an app: write a trace of every answer's life there, for chrome://tracing or ui.perfetto.dev.
        json: print one JSON object a line for every answer, and one for the whole run; else only changed answers.
    """
    if app is not None:
        others = (source, ask, memory, region, bundle != "starter", budget_ms != 100.0, frames)
        return _run_app(app, trace, json=json, others=others)
    if source is None or not ask or memory is None or trace is not None:
        raise UsageError(
            "run",
            expected="an app's file, or --source, --ask and --memory",
            got="--trace without an app" if trace is not None else "neither",
            do="give for instance --source 0 --ask 'is the gate open?' --memory home.memory",
        )
    from edge_ravlm.frames import Region
    from edge_ravlm.runtime.apps.account import Account
    from edge_ravlm.runtime.apps.watch import watch
    from edge_ravlm.runtime.camera import LiveCapture, open_camera

    looked_at = None if region is None else Region.parse(region)
    account = Account()
    with (
        memory_cli.load_to_ask(bundle, memory, budget_ms=budget_ms) as ravlm,
        open_camera(source) as camera,
        LiveCapture(camera) as live,
    ):
        ended = ""
        try:
            for seen in watch(ravlm, live, ask, looked_at, frames):
                account.add(seen.answer)
                if json:
                    say_json({"frame": seen.frame.index, "question": seen.question, **seen.answer.as_dict()})
                elif seen.changed:
                    _tell(seen.answer, f"frame {seen.frame.index}: {seen.question} ")
        except KeyboardInterrupt:  # how a watch without an end is ended
            ended = "interrupted"
        ended = ended or live.reason or "as many frames as were asked for"
        dropped = live.dropped
    total = {
        "answers": account.answers,
        "dropped_frames": dropped,
        **account.as_dict(budget_ms),
        "ended": ended,
    }
    _sum_up(total, json=json)
    return 0


def _run_app(path: Path, trace: Path | None, *, json: bool, others: tuple[object, ...]) -> int:
    """The exit code is 1 where a camera could not be read at all."""
    import logging

    from edge_ravlm.runtime.watching.app import App

    if any(others):
        raise UsageError(
            "run", expected="an app's file alone", got="options that it says itself", do="put them into the file"
        )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # on stderr: which camera is lost, and back
    with App(path, trace=trace) as opened:
        for sentence in opened.admission():
            complain(sentence)
        opened.run()
        total = opened.summary()
        failed = any(feed.failed for feed in opened.feeds.values())
    _sum_up(total, json=json)
    return int(failed)


def _sum_up(total: dict[str, Any], *, json: bool) -> None:
    if json:
        say_json({"summary": total})
    else:
        complain(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in total.items()))


@app.command
def doctor(*, json: bool = False) -> int:
    """Check this machine: packages, CPU, cameras, and whether the starter bundle answers here.

    Args:
        json: print one JSON object.
    """
    from edge_ravlm.runtime.doctor import examine

    findings = examine()
    if json:
        say_json({"ok": all(f.ok for f in findings), "findings": findings})
    else:
        rows = [("ok" if f.ok else "PROBLEM", f.what, f.found, f.advice) for f in findings]
        table("", ("", "what", "found", "what to do"), rows)
    return 0 if all(f.ok for f in findings) else 1


def _show(outcome: Outcome, sheet: Path) -> None:
    from edge_ravlm.runtime.apps.account import Account

    table(
        "Before anything was taught",
        ("question", "answer", "why"),
        [(t.thing.question, t.before.text, t.before.reason) for t in outcome.tallies if t.before is not None],
    )
    rows = []
    for tally in outcome.tallies:
        for truth in tally.thing.states.values():
            part = [(answer, told) for _, answer, told in tally.answers if told == truth]
            given = [answer for answer, _ in part]
            right = sum(answer.text == truth for answer in given)
            account = Account(given)
            times = account.latency_ms() or {}
            commonest = max({a.text for a in given}, key=[a.text for a in given].count)
            cached = account.levels().get("cached", 0) / len(given)
            rows.append(
                (tally.thing.question, truth, commonest, f"{right}/{len(given)}", f"{cached:.0%}",
                 f"{times['p50']:.1f} / {times['p99']:.1f}", str(account.misses))
            )  # fmt: skip
    columns = ("question", "truth", "usual answer", "right", "cached", "p50 / p99 ms", "misses")
    table(f"After {outcome.taught_frames} frames with a sentence each", columns, rows)
    summary = outcome.summary()
    say(
        f"{summary['correct']} of {summary['questions']} answers right ({summary['accuracy']:.1%}), "
        f"p50 {summary['latency_ms']['p50']:.1f} ms and p99 {summary['latency_ms']['p99']:.1f} ms "
        f"of a budget of {outcome.budget_ms:.0f} ms, {summary['deadline_misses']} misses."
    )
    say(f"Look at {sheet}.")


def _tell(answer: Answer, lead: str = "") -> None:
    why = f" ({answer.reason})" if answer.reason else ""
    spent = answer.latency
    verdict = "within" if spent.met else "over"
    say(f"{lead}{answer.text}{why}")
    say(f"  confidence {answer.confidence:.2f}, {answer.level.value}, {spent.total_ms:.1f} ms, "
        f"{verdict} the budget of {spent.budget_ms:.0f} ms")  # fmt: skip
    for evidence in answer.evidence:
        say(f"  because of memory {evidence.id}, '{evidence.text}', similarity {evidence.score:.2f}")
