"""The runtime's commands; those of memories and benchmarks are in files of their own.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from edge_ravlm.console import complain, complaints_of, progress, say, say_json, table
from edge_ravlm.errors import UsageError
from edge_ravlm.runtime import bench_cli, memory_cli

if TYPE_CHECKING:
    from edge_ravlm.runtime.apps.demo import Outcome
    from edge_ravlm.runtime.watching.app import App
    from edge_ravlm.runtime.watching.settings import AppSettings

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

    The clip and the starter bundle come with the package: nothing is fetched.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        budget_ms: milliseconds from a frame's capture to its answer.
        sheet: picture to write, with the answers drawn into frames of the clip; three pictures of its gate, to teach
            and ask about by hand, are written beside it.
        json: print one JSON object.
    """
    from edge_ravlm.runtime.apps.demo import check_sheet, load_clip, run_demo, write_sheet, write_stills
    from edge_ravlm.runtime.opening import load

    check_sheet(sheet)
    with load(bundle, budget_ms=budget_ms) as ravlm, progress("watching the clip", load_clip()[1].frames) as advance:
        outcome = run_demo(ravlm, advance)
    write_sheet(outcome.sheet, sheet)
    stills = write_stills(outcome.stills, sheet)
    if json:
        say_json({**outcome.summary(), "sheet": str(sheet), "stills": stills})
    else:
        _show(outcome)
        say(f"Look at {sheet}. Pictures of the gate, to teach and ask about by hand: {', '.join(map(str, stills))}.")


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
    generate: Annotated[bool | None, Parameter(negative="--no-generate")] = None,
    hops: int = 1,
    json: bool = False,
) -> None:
    """Answer a question about one picture from a memory.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        question: one sentence.
        memory: the memory's folder.
        image: the picture that is asked about.
        region: look only at this part of the picture, x0,y0,x1,y1 in pixels; with NAME= before it, answer only from
            what was taught in the region of that name.
        tag: NAME=VALUE, use only memories with this tag; may be given several times.
        budget_ms: milliseconds from the question to the answer.
        generate: let the fusion decoder write the answer in words, or forbid it; unless told, the runtime chooses, and
            gives an answer that was taught.
        hops: how often a written answer may search the memory; 2 searches again with what was found.
        json: print one JSON object.
    """
    from edge_ravlm.frames import Region, read_image

    where = memory_cli.where_tags(tag)
    looked_at = None if region is None else Region.parse(region)
    picture = read_image(image)
    with memory_cli.load_to_ask(bundle, memory, budget_ms=budget_ms) as ravlm:
        answer = ravlm.ask(picture, question, region=looked_at, where=where, generate=generate, hops=hops)
    if json:
        say_json(answer.as_dict())
    else:
        _tell(answer.as_dict())


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
    tag: memory_cli.Tags = None,
    budget_ms: float = 100.0,
    generate: bool = False,
    hops: int = 1,
    frames: memory_cli.Count = 0,
    trace: Path | None = None,
    json: bool = False,
) -> int:
    """Watch cameras and answer questions about their frames until they end, or until Ctrl-C or SIGTERM.

    Args:
        app: a TOML file with cameras, watches and sinks (see runtime/APPS.md); it may be changed while it runs. Without
            it one camera is watched, as the options say.
        source: a file, a folder of images, a webcam index, an rtsp:// or http:// address, or gst:PIPELINE.
        ask: a question about every frame; may be given several times.
        memory: the memory's folder.
        bundle: a folder, a .zip, or 'starter'.
        region: look only at this part of the frames, x0,y0,x1,y1 in pixels; with NAME= before it, answer only from
            what was taught in the region of that name.
        tag: NAME=VALUE, use only memories with this tag; may be given several times.
        budget_ms: milliseconds from a frame's capture to its answer.
        generate: let the fusion decoder write the answers in words.
        hops: how often a written answer may search the memory; 2 searches again with what was found.
        frames: stop after so many frames; 0 goes on until the source ends.
        trace: file for a trace of every answer's life, to be opened in chrome://tracing or ui.perfetto.dev.
        json: print a JSON object a line, one for every answer and one for the whole run; without it, answers that
            changed are printed. What an app prints its sinks say: there it adds the object for the whole run.
    """
    from edge_ravlm.runtime.deadline import check_budget
    from edge_ravlm.runtime.watching.settings import AppSettings, CameraSettings, SinkSettings, WatchSettings, check_app

    if app is not None:
        given = (source, ask, memory, region, tag, generate, frames)
        if any((*given, bundle != "starter", budget_ms != 100.0, hops != 1)):
            raise UsageError(
                "run", expected="an app's file alone", got="options that it says itself", do="put them into the file"
            )
        return _watch(app, trace, json=json)
    missing = [name for name, value in (("--source", source), ("--ask", ask), ("--memory", memory)) if not value]
    if source is None or not ask or memory is None:
        raise UsageError(
            "run",
            expected="an app's file, or --source, --ask and --memory",
            got=f"no {', no '.join(missing)}",
            do="give for instance --source 0 --ask 'is the gate open?' --memory home.memory",
        )
    camera = CameraSettings(name="camera", source=source, frames=frames, frozen_s=0)
    how: dict[str, Any] = {
        "region": region,
        "tags": memory_cli.where_tags(tag).tags,
        "generate": generate,
        "hops": hops,
    }
    watches = [
        WatchSettings(name=f"{number}", camera="camera", question=question, **how)
        for number, question in enumerate(dict.fromkeys(ask))
    ]
    settings = AppSettings(
        memory=str(memory),
        bundle=bundle,
        cameras=(camera,),
        watches=tuple(watches),
        budget_ms=check_budget(budget_ms),
        sinks=(SinkSettings(what="answers"),) if json else (),
    )
    check_app(settings)
    return _watch(settings, trace, json=json)


@app.command
def serve(
    app: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0, lte=65535))] = 8765,
    token_file: Path | None = None,
    trace: Path | None = None,
    json: bool = False,
) -> int:
    """Run an app, and serve a page and an HTTP API beside it: look, teach and ask, until Ctrl-C or SIGTERM.

    Args:
        app: a TOML file with cameras, watches and sinks, as for `run`.
        host: the address that listens; 127.0.0.1 is heard by this machine alone, 0.0.0.0 by all networks.
        port: 0 takes a free one.
        token_file: a file whose first line is the password to come in; needed where other machines reach the host.
        trace: write a trace of every answer's life there, for chrome://tracing or ui.perfetto.dev.
        json: print one JSON object for the whole run at its end, beside what the app's sinks print.
    """
    from edge_ravlm.errors import needs_extra

    with needs_extra("apps"):
        from edge_ravlm.runtime.serving.board import Board
        from edge_ravlm.runtime.serving.desk import Desk
        from edge_ravlm.runtime.serving.server import Server, read_token
    from edge_ravlm.runtime.watching.app import App

    token = None if token_file is None else read_token(token_file)
    board = Board()
    with (
        complaints_of("edge_ravlm.runtime"),
        App(app, on_event=board.event, on_answer=board.answer, trace=trace) as opened,
        Server(Desk(opened, board), host, port, token) as server,
    ):
        for sentence in opened.admission():
            complain(sentence)
        complain(f"Open {server.url}{'' if token is None else '?token=… with the token'} in a browser.")
        opened.run(stay=True)
    return _ended(opened, json=json)


def _watch(app: Path | AppSettings, trace: Path | None, *, json: bool) -> int:
    """Run an app; the exit code is 1 where a camera could not be read, or errors left no answer."""
    from edge_ravlm.runtime.watching.app import App

    def changed(row: Mapping[str, Any]) -> None:
        try:
            _tell(row, f"frame {row['frame']}: {row['question']} ")
        except BrokenPipeError:  # the reader, `head` for instance, has seen enough
            opened.stop()

    has_file = isinstance(app, Path)
    with (
        complaints_of("edge_ravlm.runtime"),  # which camera is lost, and back
        App(app, on_event=None if has_file or json else changed, trace=trace) as opened,
    ):
        for sentence in opened.admission() if has_file else ():
            complain(sentence)
        opened.run()
    return _ended(opened, json=json)


def _ended(opened: App, *, json: bool) -> int:
    """Tell how a run went; its exit code."""
    total = opened.summary()
    if opened.is_unread:  # whatever is written there would wait, at the end of Python too
        sys.stdout = StringIO()
    if json:
        say_json({"summary": total})
    elif total["answers"] or not opened.failed:
        complain(_summed(total))
    return int(opened.failed)


_LEVELS = {"retrieved": "looked", "generated": "written", "cached": "unchanged", "held": "held"}


def _summed(total: Mapping[str, Any]) -> str:
    """An app's summary for people: what is empty is left out."""

    def listed(counts: Mapping[str, int], names: Mapping[str, str]) -> str:
        return ", ".join(f"{counts[name]} {word}" for name, word in names.items() if counts.get(name))

    def bracketed(text: str) -> str:
        return f" ({text})" if text else ""

    parts = [f"{total['answers']} answers{bracketed(listed(total['levels'], _LEVELS))}"]
    if total["latency_ms"] is not None:
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in total["latency_ms"].items())
        late = bracketed(listed(total["late_by"], {stage: f"by {stage}" for stage in total["late_by"]}))
        parts += [f"{times} of {total['budget_ms']:g} ms", f"{total['deadline_misses']} late{late}"]
    parts += [f"watch '{name}' left out {count} times" for name, count in total["thinned"].items()]
    parts += [f"{total['lines_lost']} lines lost"] if total["lines_lost"] else []
    cameras = [
        f"{name}: {camera['state']}"
        + bracketed(", ".join(filter(None, (camera["reason"], listed(camera, _CAMERA_COUNTS)))))
        for name, camera in total["cameras"].items()
    ]
    return "; ".join((", ".join(parts), *cameras))


_CAMERA_COUNTS = {"dropped": "frames skipped", "replaced": "frames replaced", "reconnects": "times back"}


@app.command
def doctor(*, json: bool = False) -> int:
    """Check this machine: packages, processor, video, disk, and whether the starter bundle answers here.

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


def _show(outcome: Outcome) -> None:
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


def _tell(answer: Mapping[str, Any], lead: str = "") -> None:
    """An answer as plain values."""
    why = f" ({answer['reason']})" if answer["reason"] else ""
    spent = answer["latency"]
    verdict = "within" if spent["met"] else "over"
    say(f"{lead}{answer['text']}{why}")
    say(f"  confidence {answer['confidence']:.2f}, {answer['level']}, {spent['total_ms']:.1f} ms, "
        f"{verdict} the budget of {spent['budget_ms']:.0f} ms")  # fmt: skip
    for evidence in answer["evidence"]:
        say(f"  because of memory {evidence['id']}, '{evidence['text']}', similarity {evidence['score']:.2f}")
