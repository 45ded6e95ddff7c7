"""The command line as a user meets it: results, exit codes, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import cyclopts
import msgspec
import numpy as np
import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.cli import build_app, run
from edge_ravlm.frames import MAX_PIXELS
from edge_ravlm.runtime.apps.demo import load_clip
from edge_ravlm.runtime.camera import open_camera


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A few frames of the demo clip as files."""
    folder = tmp_path_factory.mktemp("stills")
    path, _ = load_clip()
    found: dict[int, Path] = {}
    with open_camera(path) as camera:
        for frame in camera.frames():
            if frame.index in (14, 82, 300, 430):
                found[frame.index] = folder / f"{frame.index}.png"
                assert cv2.imwrite(str(found[frame.index]), frame.pixels)
            if frame.index == 430:
                return found
    raise AssertionError("the clip ended early")


GATE = "gate=250,137,411,208"


def helps(app: cyclopts.App, *names: str) -> Iterator[tuple[str, ...]]:
    """The commands below an app that explain themselves."""
    yield names
    for name in app:
        if not name.startswith("-"):
            yield from helps(app[name], *names, name)


@pytest.mark.parametrize("words", list(helps(build_app())), ids=" ".join)
def test_help_names_units_and_offers_only_what_does_something(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    code, told, _ = invoke(capsys, *words, "--help")
    assert code == 0
    assert set(re.findall(r"--(?:no|empty)-[a-z-]+", told)) == ({"--no-generate"} if words == ("ask",) else set())
    assert re.findall(r"--[a-z-]+-ms ", told) == re.findall(r"--[a-z-]+-ms (?= *(?:FLOAT +)?milliseconds)", told)


def test_commands_let_opencv_take_no_larger_pictures_than_a_frame_may_be() -> None:
    assert os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] == str(MAX_PIXELS)


def test_the_help_of_estimate_explains_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("MB", "least ms", "layered ms", "mostly", "real ms", "ratio")
    _, told, _ = invoke(capsys, "estimate", "--help")
    assert [name for name in columns if f'"{name}"' not in told] == []


@pytest.fixture
def memory(tmp_path: Path, stills: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> Path:
    """The gate taught from one frame of each state."""
    path = tmp_path / "home.memory"
    for index, text in ((14, "the gate is closed"), (82, "the gate is open")):
        command = ("memory", "add", path, "--text", text, "--image", stills[index], "--region", GATE)
        assert invoke(capsys, *command)[0] == 0
    return path


def test_demo_prints_its_figures_and_pictures(
    tmp_path: Path, stills: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.jpg"
    code, out, _ = invoke(capsys, "demo", "--json", "--sheet", sheet)
    figures = json.loads(out)
    assert code == 0
    assert figures["frames"] == 880
    assert figures["questions"] > 500
    assert figures["correct"] >= 0.95 * figures["questions"]
    assert figures["abstained_before_teaching"] == figures["asked_before_teaching"] == 3
    assert set(figures["latency_ms"]) == {"p50", "p99"}
    assert figures["deadline_misses"] <= figures["questions"]
    assert figures["budget_ms"] == 100
    assert np.asarray(cv2.imread(str(sheet))).std() > 20
    assert figures["stills"] == [str(tmp_path / f"sheet-{name}.jpg") for name in ("closed", "open", "now")]
    closed, opened = (cv2.imread(figures["stills"][n]) for n in (0, 1))
    for index, still in ((14, closed), (82, opened)):
        assert np.abs(cv2.imread(str(stills[index])).astype(float) - still).mean() < 4
    assert np.abs(closed.astype(float) - opened).mean() > 4


def test_teach_ask_and_search_from_the_command_line(
    memory: Path, stills: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for index, truth in ((300, "the gate is closed"), (430, "the gate is closed"), (82, "the gate is open")):
        if index == 300:  # it moves there: whatever is answered, evidence and latency have to be reported
            code, out, _ = invoke(
                capsys, "ask", "starter", "is the gate open?", "--memory", memory, "--image", stills[index],
                "--region", GATE,
            )  # fmt: skip
            assert code == 0
            assert "because of memory" in out
            assert "ms" in out
            continue
        code, out, _ = invoke(
            capsys, "ask", "starter", "is the gate open?", "--memory", memory, "--image", stills[index],
            "--region", GATE, "--budget-ms", 5000, "--json",
        )  # fmt: skip
        answer = json.loads(out)
        assert (code, answer["text"]) == (0, truth)
        assert answer["evidence"][0]["text"] == truth
        assert answer["latency"]["met"]
    code, out, _ = invoke(capsys, "search", memory, "an open gate", "--json")
    assert code == 0
    assert {hit["text"] for hit in json.loads(out)["hits"]} == {"the gate is open", "the gate is closed"}
    code, out, _ = invoke(capsys, "memory", "search", memory, stills[82], "--k", 1, "--json")
    assert code == 0
    assert len(json.loads(out)["hits"]) == 1


def test_run_watches_a_source_until_it_ends(
    memory: Path, tmp_path: Path, stills: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in (14, 430, 82):
        (folder / f"{index}.png").write_bytes(stills[index].read_bytes())
    code, out, _ = invoke(
        capsys, "run", "--source", folder, "--ask", "is the gate open?", "--memory", memory, "--region", GATE,
        "--json",
    )  # fmt: skip
    *answers, last = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [answer["frame"] for answer in answers] == sorted({answer["frame"] for answer in answers})
    camera = last["summary"]["cameras"]["camera"]
    assert last["summary"]["answers"] + camera["dropped"] == 3
    assert camera["reason"] == "end of file"


def test_a_memory_is_listed_checked_compacted_and_moved(
    memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = invoke(capsys, "memory", "list", memory, "--json")
    assert (code, json.loads(out)["entries"]) == (0, 2)
    assert invoke(capsys, "memory", "compact", memory)[0] == 0
    code, out, _ = invoke(capsys, "memory", "verify", memory, "--json")
    assert (code, json.loads(out)) == (0, {"ok": True, "entries": 2, "problems": []})
    assert invoke(capsys, "memory", "export", memory, tmp_path / "out")[0] == 0
    code, out, _ = invoke(capsys, "memory", "import", tmp_path / "copy.memory", tmp_path / "out", "--json")
    assert (code, json.loads(out)) == (0, {"added": 2, "present": 0, "skipped": 0})
    code, out, _ = invoke(capsys, "memory", "list", tmp_path / "copy.memory", "--tag", "region=gate")
    assert "2 of 2" in out
    code, out, _ = invoke(capsys, "memory", "remove", memory, 1, "--json")
    assert (code, json.loads(out)) == (0, {"removed": 1, "unknown": [], "entries": 1})
    code, out, _ = invoke(capsys, "memory", "reembed", memory, "--json")
    assert (code, json.loads(out)) == (0, {"entries": 1, "without_picture": 0})


def test_a_damaged_memory_is_reported(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "memory", "compact", memory)[0] == 0
    victim = next(memory.glob("generation-*/image.f16"))
    data = bytearray(victim.read_bytes())
    data[10] ^= 255
    victim.write_bytes(bytes(data))
    code, out, _ = invoke(capsys, "memory", "verify", memory)
    assert code == 1
    assert "image.f16" in out


def test_verify_mends_the_index_of_words(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(memory / "memory.db")) as database, database:
        database.execute("UPDATE words_data SET block = x'ff'")
    code, out, _ = invoke(capsys, "memory", "verify", memory)
    assert code == 1
    assert "the index of words" in out
    assert invoke(capsys, "memory", "verify", memory)[0] == 0


def test_bundle_and_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = invoke(capsys, "bundle", "inspect", "starter", "--json")
    assert code == 0
    assert json.loads(out)["parity"]["cosine_mean"] > 0.9
    archive = tmp_path / "starter.zip"
    assert invoke(capsys, "bundle", "pack", "starter", archive)[0] == 0
    code, out, _ = invoke(capsys, "bundle", "verify", archive, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    code, out, _ = invoke(capsys, "doctor", "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 0, ""),
        (("nonsense",), 2, "nonsense"),
        (("serch", "{memory}", "gate"), 2, 'Did you mean "search"?'),
        (("memory", "ad", "{memory}"), 2, 'Did you mean "add"?'),
        (("memory", "add", "{tmp}/m"), 2, "--text is missing. See `edge-ravlm memory add --help`"),
        (("memory", "add", "{tmp}/m", "--text"), 2, "--text requires an argument. See `edge-ravlm memory add --help`"),
        (("ask", "starter"), 2, "QUESTION is missing"),
        (("ask", "is it open?", "--memory", "m", "--image", "i.jpg"), 2, "`edge-ravlm ask BUNDLE QUESTION`"),
        (("ask", "starter", "x", "--memory", "{tmp}/none", "--image", "{still}"), 1, "none"),
        (("ask", "starter", "x", "--memory", "{memory}", "--image", "{tmp}/none.jpg"), 1, "none.jpg"),
        (("ask", "starter", "", "--memory", "{memory}", "--image", "{still}"), 2, "question"),
        (("ask", "starter", "x" * 10_000, "--memory", "{memory}", "--image", "{still}"), 2, "10000 characters"),
        (("ask", "starter", "x\udcff", "--memory", "{memory}", "--image", "{still}"), 2, "UTF-8"),
        (("ask", "{tmp}", "x", "--memory", "{memory}", "--image", "{still}"), 1, "manifest.json"),
        (("ask", "starter", "x", "--memory", "{memory}", "--image", "{still}", "--budget-ms", "0"), 2, "budget"),
        (("ask", "starter", "x", "--memory", "{memory}", "--image", "{still}", "--budget-ms", "soon"), 2, "soon"),
        (("ask", "starter", "x", "--memory", "{memory}", "--image", "{still}", "--region", "1,2"), 2, "region"),
        (("ask", "starter", "x", "--memory", "{memory}", "--image", "{still}", "--region", "0,0,9999,9"), 2, "inside"),
        (("ask", "starter", "x", "--memory", "{memory}", "--image", "{still}", "--tag", "red"), 2, "NAME=VALUE"),
        (("memory", "add", "{tmp}/m", "--text", " "), 2, "sentence"),
        (("memory", "add", "{tmp}/m", "--text", "x" * 10_001), 2, "10"),
        (("memory", "list", "{tmp}"), 1, "memory"),
        (("memory", "remove", "{memory}", "first"), 2, "first"),
        (("memory", "import", "{tmp}/m", "{tmp}/nothing.csv"), 1, "nothing.csv"),
        (("search", "{memory}", "gate", "--k", "0"), 2, "k"),
        (("run", "--source", "{tmp}/none.mp4", "--ask", "x", "--memory", "{memory}"), 1, "none.mp4"),
        (("bundle", "verify", "{still}"), 1, "bundle"),
        (("demo", "--sheet", "{still}/under/a/file.jpg"), 1, "--sheet"),
    ],
)
def test_whatever_is_wrong_is_said_in_one_sentence(
    arguments: tuple[str, ...],
    code: int,
    says: str,
    memory: Path,
    tmp_path: Path,
    stills: dict[int, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [a.format(tmp=tmp_path, memory=memory, still=stills[82]) if "{" in a else a for a in arguments]
    found, out, err = invoke(capsys, *filled)
    assert found == code
    assert "Traceback" not in out + err
    if code:
        assert len(err.strip().splitlines()) == 1
        assert says in err
        assert "ms" not in out  # nothing was answered


ROOT = Path(__file__).parents[1]

INTERRUPTED = """
import os, signal, sys
from importlib import import_module

class CtrlC:
    def find_spec(self, name, path, target=None):
        if name == "edge_ravlm.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
module, _, function = sys.argv.pop(1).partition(":")
getattr(import_module(module), function)()
"""
"""The program, and Ctrl-C while its parts are imported."""


def test_ctrl_c_ends_it_quietly_while_it_is_still_imported(tmp_path: Path) -> None:
    program = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]["scripts"]["edge-ravlm"]
    command = [sys.executable, "-c", INTERRUPTED, program, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_in_the_middle_of_a_command_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bundle, "open", pressed)
    assert run(["bundle", "verify", "starter"]) == 130


@pytest.mark.parametrize("arguments", [("--help",), ("memory", "add", "--help"), ("bundle", "inspect", "starter")])
def test_a_reader_that_has_seen_enough_is_no_failure(arguments: tuple[str, ...], tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "edge_ravlm", *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")
