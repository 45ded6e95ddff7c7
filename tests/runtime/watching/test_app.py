"""An app as people run it: a file, recordings as cameras, lines of JSON, metrics, a trace, a reload, SIGTERM."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import DataError, MemoryFault, MissingExtra, StorageError
from edge_ravlm.runtime import looking
from edge_ravlm.runtime.answer import UNKNOWN, Answer, Latency, Level
from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.watching import admission as admission_module
from edge_ravlm.runtime.watching import app as app_module
from edge_ravlm.runtime.watching import sinks
from edge_ravlm.runtime.watching.admission import admission, ask, unsaid
from edge_ravlm.runtime.watching.app import App
from edge_ravlm.runtime.watching.lanes import Told
from edge_ravlm.runtime.watching.metrics import WAITING, Metrics, longest
from edge_ravlm.runtime.watching.sinks import Sink
from edge_ravlm.runtime.watching.trace import Trace

OPEN, CLOSED = "the gate is open", "the gate is closed"
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, yard: Any) -> Path:
    """A memory that knows the gate, and a folder of pictures in which it opens and closes."""
    folder = tmp_path_factory.mktemp("home")
    with load("starter", memory=folder / "yard.memory") as ravlm:
        ravlm.remember(yard.open, OPEN, region=yard.gate)
        ravlm.remember(yard.closed, CLOSED, region=yard.gate)
    (folder / "stills").mkdir()
    for index in range(24):
        picture = (yard.closed_later, yard.open_later)[index // 6 % 2]
        assert cv2.imwrite(str(folder / f"stills/{index:02d}.png"), picture)
    return folder


def written(
    home: Path, name: str, yard: Any, *, top: str = "", camera: str = "", watch: str = "", more: str = ""
) -> Path:
    (x0, y0), (x1, y1) = yard.gate.points
    path = home / name
    path.write_text(
        f"""
memory = "yard.memory"
budget_ms = 60000
{top}
[[cameras]]
name = "yard"
source = "stills"
{camera}
[[watches]]
name = "gate"
camera = "yard"
question = "is the gate open?"
region = "{yard.gate.name}={x0},{y0},{x1},{y1}"
{watch}
[[sinks]]
kind = "file"
path = "{name}.events.jsonl"
[[sinks]]
kind = "file"
what = "answers"
path = "{name}.answers.jsonl"
{more}
""",
        encoding="utf-8",
    )
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """Those that are there in full: another one may be half written."""
    return [json.loads(line) for line in path.read_bytes().rpartition(b"\n")[0].splitlines()]


def test_every_frame_is_answered_and_events_are_changes_that_hold(home: Path, yard: Any) -> None:
    path = written(home, "plain.toml", yard, watch="agree = [2, 3]")
    heard: list[dict[str, Any]] = []
    with App(path, on_event=heard.append) as app:
        app.run()
        summary = app.summary()
    answers, events = lines(home / "plain.toml.answers.jsonl"), lines(home / "plain.toml.events.jsonl")
    frames = [row["frame"] for row in answers]
    assert frames == sorted(set(frames))
    assert len(frames) + summary["cameras"]["yard"]["dropped"] == 24
    for row in answers:  # a busy machine may look at the next frame instead, and that is another state after each sixth
        assert row["text"] in {(CLOSED, OPEN)[index // 6 % 2] for index in {row["frame"], row["frame"] + 1} - {24}}
        assert row["frame"] % 6 == 5 or row["text"] == (CLOSED, OPEN)[row["frame"] // 6 % 2]
    assert all(row["evidence"] and row["latency"]["met"] for row in answers)
    changes = [(row["text"], row["before"]) for row in events]
    assert changes == [(CLOSED, None), (OPEN, CLOSED), (CLOSED, OPEN), (OPEN, CLOSED)]
    assert [row["text"] for row in heard] == [row["text"] for row in events]
    assert summary["answers"] == len(frames)
    assert summary["cameras"]["yard"]["state"] == "ended"
    assert summary["cameras"]["yard"]["reason"] == "end of file"


def test_who_fails_to_take_an_answer_costs_nobody_else_an_event(home: Path, yard: Any) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise ValueError("no room")

    heard: list[dict[str, Any]] = []
    with App(written(home, "fails.toml", yard), on_answer=fail, on_event=heard.append) as app:
        app.run()
        assert "no room" in app._faults
    assert [row["before"] for row in heard][:2] == [None, CLOSED]
    assert [row["frame"] for row in lines(home / "fails.toml.events.jsonl")] == [row["frame"] for row in heard]


def test_watches_on_motion_and_with_a_period_are_asked_less(home: Path, yard: Any) -> None:
    more = '[[watches]]\nname = "seldom"\ncamera = "yard"\nquestion = "is the gate open?"\nevery_ms = 60000\n'
    with App(written(home, "less.toml", yard, watch="on_motion = true", more=more)) as app:
        app.run()
    rows = lines(home / "less.toml.answers.jsonl")
    assert [row["frame"] // 6 for row in rows if row["watch"] == "gate"] == [0, 1, 2, 3]
    assert len([row for row in rows if row["watch"] == "seldom"]) == 1


def test_a_watch_on_motion_is_asked_until_its_answers_agree(home: Path, yard: Any) -> None:
    with App(written(home, "agree.toml", yard, watch="on_motion = true\nagree = [2, 3]")) as app:
        app.run()
        asked = app.account.answers
    changes = [row["text"] for row in lines(home / "agree.toml.events.jsonl")]
    assert changes == [CLOSED, OPEN, CLOSED, OPEN]
    assert asked < 24


@contextmanager
def running(app: App) -> Iterator[None]:
    thread = threading.Thread(target=app.run)
    thread.start()
    try:
        yield
    finally:
        app.stop()
        thread.join()


def test_a_changed_file_is_read_again_and_a_wrong_one_is_not(
    home: Path, yard: Any, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "RELOAD_S", 0.05)
    path = written(home, "again.toml", yard, camera="loop = true")
    with App(path) as app, caplog.at_level(logging.INFO), running(app):
        until(lambda: app.account.answers > 2)
        path.write_text("memory = 3", encoding="utf-8")
        until(lambda: "the app goes on as it was" in caplog.text)
        assert "; correct it; the app goes on as it was" in caplog.text
        seen = app.account.answers
        until(lambda: app.account.answers > seen + 2)
        more = '[[watches]]\nname = "what"\ncamera = "yard"\nquestion = "what is this?"\nanswers = ["a gaet"]\n'
        written(home, "again.toml", yard, camera="loop = true", more=more, top="threads = 1")
        until(lambda: any(row["watch"] == "what" for row in lines(home / "again.toml.answers.jsonl")))
        assert "`threads` changes with the next start" in caplog.text
        until(lambda: "watch 'what': no memory answers 'a gaet'" in caplog.text)
        (home / "again.toml").write_text(path.read_text().replace('name = "yard"', 'name = "street"').replace(
            'camera = "yard"', 'camera = "street"'), encoding="utf-8")  # fmt: skip
        until(lambda: any(row["camera"] == "street" for row in lines(home / "again.toml.answers.jsonl")))
        assert set(app.feeds) == {"street"}
    frames = [row["frame"] for row in lines(home / "again.toml.answers.jsonl") if row["camera"] == "street"]
    assert frames == sorted(frames)


def test_the_command_ends_with_sigterm_and_loses_nothing(home: Path, yard: Any) -> None:
    path = written(home, "term.toml", yard, camera="loop = true", more='[[sinks]]\nwhat = "answers"\n')
    main = "import sys; from edge_ravlm.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", main, "run", str(path), "--json", "--trace", str(home / "t.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    rows = [json.loads(line) for line in [*said, *rest.splitlines()]]
    frames = [row["frame"] for row in rows[:-1]]
    assert frames == sorted(set(frames))
    assert rows[-1]["summary"]["answers"] == len(rows) - 1 == len(lines(home / "term.toml.answers.jsonl"))
    events = json.loads((home / "t.json").read_bytes())["traceEvents"]
    assert {"yard: gate", "looking 0"} <= {one["args"].get("name") for one in events}
    spans = [one for one in events if one["ph"] == "X" and "answer" in one["args"]]
    assert len(spans) == len(rows) - 1


def test_a_reader_that_stopped_reading_does_not_keep_the_command_from_ending(
    home: Path, yard: Any, until: Until
) -> None:
    path = written(home, "unread.toml", yard, camera="loop = true", more='[[sinks]]\nwhat = "answers"\n')
    main = "import sys; from edge_ravlm.cli import main; sys.exit(main())"
    beside = home / "unread.toml.answers.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", main, "run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,
    ) as process:
        until(lambda: beside.exists() and beside.stat().st_size > 20_000)  # the pipe and its buffer are full
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "sink 'stdout': lines are lost: nobody takes them" in said
    assert "lines lost; yard: closed" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_costs_lines_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    sink = Sink(Path("/dev/full"))
    for index in range(3):
        sink.put({"frame": index})
    sink.close()
    assert (sink.dropped, sink.stuck) == (3, False)
    assert caplog.text.count("sink '/dev/full': lines are lost: ") == 1, "not for every line"


def test_closing_a_sink_waits_for_a_reader_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "CLOSE_S", 0.05)
    monkeypatch.setattr(sinks, "MOST_WAITING", 4)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        sink = Sink(None)
        for _ in range(20):
            sink.put({"much": "x" * 200_000})
        sink.close()
        assert (sink.dropped, sink.stuck) == (20, True)
        threading.Thread(target=reader.read, daemon=True).start()  # so that the file can be closed


def test_what_cannot_be_opened_is_said_before_anything_is_watched(
    home: Path, yard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(home, "bad.toml", yard)
    path.write_text(path.read_text().replace("yard.memory", "none.memory"), encoding="utf-8")
    with pytest.raises(MemoryFault):
        App(path)
    assert command(["run", str(home / "none.toml")]) == 1
    assert "expected a readable TOML file" in capsys.readouterr().err
    assert command(["run", str(path), "--source", "0"]) == 2
    assert "an app's file alone" in capsys.readouterr().err
    for option in (["--budget-ms", "40"], ["--tag", "a=b"], ["--generate"], ["--hops", "2"]):
        assert command(["run", str(path), *option]) == 2
    assert command(["run", "--source", "0"]) == 2
    assert "an app's file, or --source, --ask and --memory, got no --ask, no --memory;" in capsys.readouterr().err
    with pytest.raises(StorageError):
        Sink(home / "none" / "x.jsonl")
    with pytest.raises(StorageError):
        Trace(home / "none" / "x.json")


def test_a_camera_that_is_not_there_is_named_and_the_command_fails(
    home: Path, yard: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = written(home, "gone.toml", yard)
    path.write_text(path.read_text().replace('source = "stills"', 'source = "none.mp4"'), encoding="utf-8")
    assert command(["run", str(path), "--json"]) == 1
    assert "none.mp4" in caplog.text
    assert "no such file" in json.loads(capsys.readouterr().out)["summary"]["cameras"]["yard"]["reason"]


def test_admission_says_what_cannot_be_kept_up_with(home: Path, yard: Any) -> None:
    with App(written(home, "fits.toml", yard, camera="fps = 0.1")) as app:
        assert app.admission() == []
        few = written(home, "few.toml", yard, top="").read_text().replace("budget_ms = 60000", "budget_ms = 0.01")
        (home / "few.toml").write_text(few)
        (tight,) = [one for one in admission(app_module.read_app(home / "few.toml"), app.ravlm) if "budget" in one]
        assert tight.startswith("camera 'yard': 1 watches need ")
        many = "".join(f'[[watches]]\nname = "w{n}"\ncamera = "yard"\nquestion = "is it {n}?"\n' for n in range(20))
        busy = written(home, "busy.toml", yard, camera="fps = 1000", more=many)
        found = admission(app_module.read_app(busy), app.ravlm)
        assert any("21 watches of 1 cameras need" in one and "times what this machine has" in one for one in found)


def test_of_a_thousand_watches_a_few_tell_what_all_need(home: Path, yard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits minutes for the first frame."""
    asked: list[str] = []

    def counted(ravlm: Any, watch: Any, *more: Any) -> Any:
        asked.append(watch.name)
        return ask(ravlm, watch, *more)

    monkeypatch.setattr(admission_module, "ask", counted)
    monkeypatch.setattr(admission_module, "_TRYING_S", 0.0)
    more = "".join(f'[[watches]]\nname = "w{n}"\ncamera = "yard"\nquestion = "is it {n}?"\n' for n in range(1000))
    with App(written(home, "many.toml", yard, camera="fps = 1000", more=more)) as app:
        found = app.admission()
    assert set(asked) == {"gate"}
    assert any("1001 watches of 1 cameras need" in one for one in found)


def test_answers_that_no_memory_gives_are_said_at_the_start(home: Path, yard: Any) -> None:
    watch = f'answers = ["the gate is opne", "The gate is  OPEN.", "{UNKNOWN}"]'
    with App(written(home, "opne.toml", yard, camera="fps = 0.1", watch=watch)) as app:
        (said,) = app.admission()
        assert said.startswith("watch 'gate': no memory answers 'the gate is opne', so it is no event;")
        written(home, "opne.toml", yard, watch=f"{watch}\ngenerate = true")
        assert unsaid(app_module.read_app(home / "opne.toml"), app.ravlm) == [], "what is written may say anything"
        elsewhere = written(home, "opne.toml", yard, watch=f'answers = ["{OPEN}"]\ntags = {{season = "winter"}}')
        assert len(unsaid(app_module.read_app(elsewhere), app.ravlm)) == 1, "it was taught without that tag"


def test_several_cameras_are_looked_at_together(
    home: Path, yard: Any, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(looking, "_WORTH", 1e9)  # whatever it brings on this machine today
    more = '[[cameras]]\nname = "drive"\nsource = "stills"\n[[watches]]\nname = "there"\ncamera = "drive"\n'
    more += 'question = "is the gate open?"\n'
    with App(written(home, "two.toml", yard, more=more)) as app:
        looks, sizes = app.ravlm._image.looks, list[int]()
        monkeypatch.setattr(app.ravlm._image, "looks", lambda pixels: sizes.append(len(pixels)) or looks(pixels))
        app.run()
    rows = lines(home / "two.toml.answers.jsonl")
    for camera in ("yard", "drive"):
        frames = [row["frame"] for row in rows if row["camera"] == camera]
        assert frames == sorted(set(frames))
        assert frames[-1] == 23
    assert 2 in sizes[sizes.index(2) + 7 :], "beyond what was measured at the start"
    assert all(row["latency"]["met"] for row in rows)


@pytest.mark.parametrize("place", ["yard.memory/memory.db", "own.toml"])
def test_nothing_of_the_users_is_written_over(home: Path, yard: Any, place: str) -> None:
    path = written(home, "own.toml", yard, camera="frames = 1")
    with pytest.raises(DataError, match="a file beside the memory and the app's file"):
        App(path, trace=home / place)
    path.write_text(path.read_text().replace('path = "own.toml.events.jsonl"', f'path = "{place}"'))
    before = (home / place).read_bytes()
    with pytest.raises(DataError, match="a file beside the memory and the app's file"):
        App(path)
    assert (home / place).read_bytes() == before


def test_only_an_earlier_trace_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    os.mkfifo(tmp_path / "pipe")
    for name in ("letter.txt", "pipe"):
        with pytest.raises(StorageError, match="a new file, or an earlier trace"):
            Trace(tmp_path / name)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    for _ in range(2):
        with Trace(tmp_path / "t.json") as trace:
            trace.told(told())
    assert json.loads((tmp_path / "t.json").read_bytes())["traceEvents"]


# -- metrics and trace ------------------------------------------------------------------------------------------------


def told(level: Level = Level.RETRIEVED, total_ms: float = 12.0, age_frames: int = 0) -> Told:
    answer = Answer(OPEN, 0.9, level, (), Latency({"encode": 5.0, "search": 1.0}, total_ms, 20.0), 1.0)
    return Told("yard", "gate", 7, 1.0, answer, age_frames, total_ms)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_metrics_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with Metrics(port) as metrics:
        metrics.told(told())
        metrics.told(told(Level.HELD, 90.0, age_frames=3))
        with pytest.raises(StorageError, match="a free port"):
            Metrics(port)
        with pytest.raises(StorageError, match=r"of 192\.0\.2\.1: expected a free port of this machine"):
            Metrics(free_port(), "192.0.2.1")
        assert metrics._server.server_address[0] == "127.0.0.1", "other machines hear nothing unless they are to"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
            text = page.read().decode()
    for line in (
        'edge_ravlm_answers_total{camera="yard",level="held",watch="gate"} 1.0',
        'edge_ravlm_misses_total{camera="yard",stage="waiting",watch="gate"} 1.0',
        'edge_ravlm_age_frames_bucket{camera="yard",le="2.0",watch="gate"} 1.0',
        'edge_ravlm_stage_milliseconds_count{stage="encode"} 2.0',
        'edge_ravlm_answer_milliseconds_bucket{camera="yard",le="15.0",watch="gate"} 1.0',
    ):
        assert line in text
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra):
        Metrics(port)
    Metrics(0).told(told())


def test_a_late_answer_is_blamed_on_its_longest_stage() -> None:
    assert longest(Latency({"encode": 30.0, "search": 4.0}, 40.0, 20.0)) == "encode"
    assert longest(Latency({"encode": 3.0}, 40.0, 20.0)) == WAITING


def test_the_state_of_cameras_is_served(home: Path, yard: Any, until: Until) -> None:
    port = free_port()
    top = f'metrics_port = {port}\nmetrics_host = "0.0.0.0"'
    with App(written(home, "seen.toml", yard, camera="loop = true", top=top)) as app, running(app):
        until(lambda: app.account.answers > 2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
            text = page.read().decode()
    assert 'edge_ravlm_camera_state{camera="yard",state="running"} 1.0' in text
    assert 'edge_ravlm_camera_state{camera="yard",state="lost"} 0.0' in text
