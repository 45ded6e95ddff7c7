"""`edge-ravlm run --source`: one camera and a few questions, without a file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import UsageError
from edge_ravlm.frames import Pixels
from edge_ravlm.runtime.answer import UNKNOWN
from edge_ravlm.runtime.camera.sources import FileSource
from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.watching.app import App
from edge_ravlm.runtime.watching.settings import AppSettings, CameraSettings, WatchSettings, check_app

OPEN, CLOSED = "the gate is open", "the gate is closed"
Until = Callable[[Callable[[], bool]], None]
QUESTIONS = ("is the gate open?", "what is this?")


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, yard: Any) -> Path:
    path = tmp_path_factory.mktemp("home") / "yard.memory"
    with load("starter", memory=path) as ravlm:
        ravlm.remember(yard.open, OPEN, region=yard.gate)
        ravlm.remember(yard.closed, CLOSED, region=yard.gate)
    return path


@pytest.fixture
def folder(tmp_path: Path, yard: Any) -> Path:
    """Closed, then open: ten stills that stand in for a camera for a second."""
    pictures: list[Pixels] = [yard.closed, yard.closed_later] * 2 + [yard.open, yard.open_later] * 3
    path = tmp_path / "frames"
    path.mkdir()
    for i, picture in enumerate(pictures):
        assert cv2.imwrite(str(path / f"{i}.png"), picture)
    return path


def arguments(source: object, memory: Path, yard: Any, *more: str, budget_ms: int = 60_000) -> list[str]:
    (x0, y0), (x1, y1) = yard.gate.points
    asked = [word for question in QUESTIONS for word in ("--ask", question)]
    where = ["--memory", str(memory), "--region", f"{yard.gate.name}={x0},{y0},{x1},{y1}"]
    return ["run", "--source", str(source), *asked, *where, "--budget-ms", str(budget_ms), *more]


def said(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return rows, last["summary"]


def test_every_question_is_answered_about_the_newest_frames_until_the_source_ends(
    memory: Path, folder: Path, yard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments(folder, memory, yard, "--json")) == 0
    rows, summary = said(capsys)
    for question in QUESTIONS:
        frames = [row["frame"] for row in rows if row["question"] == question]
        assert frames == sorted(set(frames)), "never the same frame twice, never an older one"
        assert frames[-1] == 9, "the newest frame is never dropped"
        assert len(frames) + summary["cameras"]["camera"]["dropped"] == 10
    for row in rows:  # on a busy machine an answer may be from the next frame
        texts = {OPEN if index >= 4 else CLOSED for index in (row["frame"], row["frame"] + 1)}
        assert row["text"] in texts
        assert row["latency"]["met"]
    assert summary["answers"] == len(rows)
    assert summary["cameras"]["camera"]["reason"] == "end of file"


def test_without_json_only_changes_are_said(
    memory: Path, folder: Path, yard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments(folder, memory, yard)) == 0
    out, err = capsys.readouterr()
    for question in QUESTIONS:
        told = [line.rpartition("? ")[2] for line in out.splitlines() if line.startswith("frame ") and question in line]
        assert told == [CLOSED, OPEN]
    assert "because of memory" in out
    assert re.fullmatch(
        r"\d+ answers \(.*looked.*\), p50 [\d.]+ ms, p99 [\d.]+ ms of 60000 ms, 0 late; "
        r"camera: ended \(end of file(, \d+ frames \w+)*\)",
        err.strip(),
    )


def test_tags_words_and_hops_are_asked_for_as_in_a_file(
    memory: Path, folder: Path, yard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments(folder, memory, yard, "--json", "--frames", "1", "--tag", "season=winter")) == 0
    rows, _ = said(capsys)
    assert {row["text"] for row in rows} == {UNKNOWN}, "nothing was taught with that tag"
    assert command(arguments(folder, memory, yard, "--json", "--frames", "1", "--generate", "--hops", "2")) == 0
    rows, _ = said(capsys)
    assert any(stage == "decode" for row in rows for stage in row["latency"]["stages_ms"])
    assert command(arguments(folder, memory, yard, "--hops", "9")) == 2


def test_a_run_that_errors_left_without_an_answer_has_failed(
    memory: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = ["--region", "5000,5000,5100,5100"]
    assert command(["run", "--source", str(folder), "--ask", QUESTIONS[0], "--memory", str(memory), *outside]) == 1
    assert "watch '0': region" in capsys.readouterr().err


def test_a_camera_that_never_came_is_a_failure_and_being_stopped_is_none(memory: Path, until: Until) -> None:
    watch = WatchSettings(name="gate", camera="yard", question=QUESTIONS[0])

    def settings(source: str) -> AppSettings:
        return AppSettings(memory=str(memory), cameras=(CameraSettings(name="yard", source=source),), watches=(watch,))

    with App(settings("/dev/video97")) as app:
        thread = threading.Thread(target=app.run)
        thread.start()
        until(lambda: bool(app.feeds) and app.feeds["yard"].state == "lost")
        app.stop()
        thread.join()
        assert app.failed
        assert "/dev/video97" in app.summary()["cameras"]["yard"]["reason"]
    with App(settings(str(Path(__file__).parents[3] / "edge_ravlm/clips/yard.mp4"))) as app:
        app.stop()
        app.run()
        assert not app.failed


def test_it_stops_after_as_many_frames_as_were_asked_for(
    memory: Path, folder: Path, yard: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(arguments(folder, memory, yard, "--json", "--frames", "2")) == 0
    rows, summary = said(capsys)
    assert len(rows) == 4
    assert len({row["frame"] for row in rows}) == 2
    assert summary["cameras"]["camera"]["frames"] == 2
    assert summary["cameras"]["camera"]["reason"] == "as many frames as were asked for"


def test_a_budget_that_no_answer_keeps_still_brings_one_for_every_frame(
    memory: Path, folder: Path, yard: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "life.json"
    assert command(arguments(folder, memory, yard, "--json", "--trace", str(trace), budget_ms=1)) == 0
    rows, summary = said(capsys)
    assert summary["deadline_misses"] > 0
    assert {row["frame"] for row in rows} == {row["frame"] for row in rows if row["question"] == QUESTIONS[0]}
    assert len(json.loads(trace.read_bytes())["traceEvents"]) > len(rows)


def test_a_recording_that_cannot_be_read_again_is_no_end(
    memory: Path, tmp_path: Path, yard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileSource, "rewind", lambda _: False)
    path = tmp_path / "clip.avi"
    height, width = yard.closed.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (width, height))
    for _ in range(25):
        writer.write(yard.closed)
    writer.release()
    heard: list[dict[str, Any]] = []
    watch = WatchSettings(name="gate", camera="yard", question=QUESTIONS[0])
    camera = CameraSettings(name="yard", source=str(path), loop=True)
    settings = AppSettings(memory=str(memory), cameras=(camera,), watches=(watch,), budget_ms=60_000, sinks=())

    def lose(row: dict[str, Any]) -> None:
        heard.append(row)
        path.unlink(missing_ok=True)  # it cannot be opened again

    with App(settings, on_answer=lose) as app:
        app.run()
        assert app.feeds["yard"].failed
        assert "clip.avi" in app.feeds["yard"].reason
    assert heard[-1]["frame"] == 24, "the last frame is answered first"


def test_a_reader_that_has_seen_enough_ends_it(memory: Path, folder: Path, yard: Any) -> None:
    main = "import sys; from edge_ravlm.cli import main; sys.exit(main())"
    clip = Path(__file__).parents[3] / "edge_ravlm/clips/yard.mp4"
    for more in ((), ("--json",)):
        with subprocess.Popen(
            [sys.executable, "-c", main, *arguments(clip, memory, yard, *more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr is not None
            complaints = process.stderr.read()
        assert process.returncode == 0, complaints
        assert "Traceback" not in complaints


def test_what_is_no_question_is_refused(memory: Path, folder: Path, yard: Any) -> None:
    assert command(["run", "--source", str(folder), "--ask", " ", "--memory", str(memory)]) == 2
    assert command(["run", "--source", str(folder), "--ask", "x", "--memory", str(memory), "--region", "1,2"]) == 2
    assert command(["run", "--source", str(folder), "--ask", "x", "--memory", str(memory), "--budget-ms", "0"]) == 2
    watch = WatchSettings(name="gate", camera="yard", question="x" * 2_000)
    settings = AppSettings(memory="m", cameras=(CameraSettings(name="yard", source="0"),), watches=(watch,))
    with pytest.raises(UsageError, match="2000 characters"):
        check_app(settings)
