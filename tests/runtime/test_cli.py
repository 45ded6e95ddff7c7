"""The runtime's commands on odd texts, odd places and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_ravlm.cli import run
from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.apps.demo import check_sheet
from edge_ravlm.runtime.opening import load

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """call(*arguments): exit code, stdout, stderr."""

    def invoke(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return invoke


@pytest.fixture
def stills(tmp_path: Path, yard: Any) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.png" for name in ("open", "closed")}
    for name, path in paths.items():
        assert cv2.imwrite(str(path), getattr(yard, name))
    return paths


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, yard: Any) -> Path:
    path = tmp_path_factory.mktemp("taught") / "home.memory"
    with load("starter", path, threads=1) as ravlm:
        for name in ("open", "closed"):
            ravlm.remember(getattr(yard, name), f"the gate is {name}")
    return path


@pytest.fixture
def memory(taught: Path, tmp_path: Path) -> Path:
    """The gate taught from one frame of each state."""
    return Path(shutil.copytree(taught, tmp_path / "home.memory"))


@pytest.mark.parametrize("text", ["[red]a gate[/red]", r"a [/] \[gate]", "[link=http://x]y[/link]"])
def test_square_brackets_are_shown_as_they_are(
    call: Call, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "m"
    assert call("memory", "add", path, "--text", text, "--answer", text, "--tag", f"note={text}")[0] == 0
    code, out, _ = call("memory", "list", path, "--json")
    assert (code, json.loads(out)["shown"][0]["text"]) == (0, text)
    for command in (("memory", "list", path), ("search", path, "a gate")):
        code, out, err = call(*command)
        assert (code, err) == (0, "")
        assert text in out


def test_a_word_longer_than_the_table_is_not_cut(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    word = "abcdefghij" * 9
    assert call("memory", "add", tmp_path / "m", "--text", word)[0] == 0
    _, out, _ = call("memory", "list", tmp_path / "m")
    assert sum(out.count(letter) for letter in "fghj") >= 4 * 9
    assert "…" not in out


def test_a_text_of_several_lines_stays_one_entry(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "m"
    text = "bins\ngo out\ton Monday"
    assert call("memory", "add", path, "--text", text)[0] == 0
    code, out, _ = call("search", path, "bins", "--json")
    assert [hit["text"] for hit in json.loads(out)["hits"]] == [text]
    code, out, _ = call("memory", "list", path)
    assert code == 0
    assert "1 of 1" in out


def test_ids_that_were_not_there_are_named(call: Call, memory: Path) -> None:
    code, out, err = call("memory", "remove", memory, 99, 1, 98)
    assert (code, out) == (0, "1 removed\n")
    assert "98, 99" in err
    code, out, err = call("memory", "remove", memory, 1, 2**80, "--json")
    assert (code, json.loads(out)) == (1, {"removed": 0, "unknown": [1, 2**80], "entries": 1})
    code, out, err = call("memory", "remove", memory, 2, "--json")
    assert (code, json.loads(out), err) == (0, {"removed": 1, "unknown": [], "entries": 0}, "")


def test_importing_twice_says_what_was_there(call: Call, memory: Path, tmp_path: Path) -> None:
    assert call("memory", "export", memory, tmp_path / "out")[0] == 0
    code, out, _ = call("memory", "import", memory, tmp_path / "out", "--json")
    assert (code, json.loads(out)) == (0, {"added": 0, "present": 2, "skipped": 0})
    assert json.loads(call("memory", "list", memory, "--json")[1])["entries"] == 2


def test_a_memory_is_not_written_into_itself(call: Call, memory: Path) -> None:
    code, _, err = call("memory", "export", memory, memory / "out")
    assert code == 2
    assert "expected a place outside the memory" in err
    assert not (memory / "out").exists()


def test_a_tag_is_found_as_it_is_listed_whatever_it_holds(call: Call, tmp_path: Path, yard: Any) -> None:
    path = tmp_path / "m"
    with load("starter", path, threads=1) as ravlm:
        ravlm.remember(yard.open, "the gate is open", tags={"floor": 3, "indoor": True, "share": 0.5, "zip": "007"})
        ravlm.remember(yard.closed, "the gate is closed", tags={"floor": "3"})
    found = {tag: json.loads(call("memory", "list", path, "--tag", tag, "--json")[1])["entries"]
             for tag in ("floor=3", "floor=03", "floor=33", "indoor=True", "indoor=true", "indoor=False", "share=0.5",
                         "zip=007", "zip=7", "floor=1e999", "floor=99999999999999999999", "floor=", "floor=null")
             }  # fmt: skip
    assert {tag: count for tag, count in found.items() if count} == {
        "floor=3": 2, "indoor=True": 1, "indoor=true": 1, "share=0.5": 1, "zip=007": 1
    }  # fmt: skip
    hits = json.loads(call("search", path, "gate", "--tag", "floor=3", "--json")[1])["hits"]
    assert len(hits) == 2
    cv2.imwrite(str(tmp_path / "now.png"), yard.open_later)
    asked = ("--ask", "is the gate open?", "--memory", path, "--tag", "share=0.5")
    assert "the gate is open" in call("run", "--source", tmp_path / "now.png", *asked)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("memory", "list", "{memory}", "--limit", "-1"), 2, "limit"),
        (("memory", "remove", "{memory}", "-1"), 1, "-1"),
        (("memory", "remove", "{memory}", str(2**80)), 1, str(2**80)),
        (("search", "{memory}", "x" * 10_000), 2, "10000 characters"),
        (("search", "{memory}", ""), 2, "question"),
        (("search", "{memory}", "gate", "--image", "{tmp}"), 1, "image"),
        (("search", "{tmp}/none", "gate"), 1, "none"),
        (("search", "{memory}", "{tmp}/nope.JPG"), 1, "nope.JPG"),
        (("memory", "list", "{tmp}/none"), 1, "teach with `edge-ravlm memory add`"),
        (("ask", "starter", "x", "--memory", "{tmp}/none", "--image", "{still}"), 1, "edge-ravlm memory add"),
        (("memory", "add", "{tmp}/new", "--text", "x", "--region", "gate=1,2,3,4"), 2, "--image"),
        (("run", "--source", "{still}", "--ask", "x", "--memory", "{memory}", "--frames", "-3"), 2, "frames"),
        (("run", "--source", "{still}", "--ask", "", "--memory", "{memory}"), 2, "question"),
        (("run", "--source", "{still}", "--ask", "x", "--memory", "{tmp}/none"), 1, "none"),
        (("memory", "add", "{tmp}/new", "--text", "x", "--image", "{tmp}/none.png"), 1, "none.png"),
        (("memory", "add", "{tmp}/new", "--text", "x", "--tag", "=5"), 2, "NAME=VALUE"),
        (("memory", "add", "{tmp}/new", "--text", "x", "--image", "{still}", "--region", "a,b"), 2, "region"),
        (("memory", "import", "{tmp}/new", "{tmp}/none.jsonl"), 1, "none.jsonl"),
        (("demo", "--sheet", "{tmp}/sheet.txt"), 2, ".txt"),
        (("demo", "--budget-ms", "-5"), 2, "budget"),
    ],
)
def test_odd_arguments_get_one_sentence_and_leave_nothing_behind(
    call: Call, memory: Path, stills: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    filled = [a.format(memory=memory, tmp=tmp_path, still=stills["open"]) for a in arguments]
    found, out, err = call(*filled)
    assert found == code
    assert says in err
    assert len(err.strip().splitlines()) == (1 if code else 0)
    assert "Traceback" not in out + err
    assert not (tmp_path / "new").exists()
    assert json.loads(call("memory", "list", memory, "--json")[1])["entries"] == 2


def test_asking_and_searching_write_nothing_where_nothing_can_be_written(
    call: Call, memory: Path, stills: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in memory.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on read-only media; tests may run as root
    code, out, _ = call("ask", "starter", "is the gate open?", "--memory", memory, "--image", stills["open"], "--json")
    assert (code, json.loads(out)["text"]) == (0, "the gate is open")
    code, out, _ = call("search", memory, "an open gate", "--json")
    assert (code, len(json.loads(out)["hits"])) == (0, 2)
    source = ("--source", stills["open"], "--ask", "is the gate open?")
    code, out, _ = call("run", *source, "--memory", memory, "--json")
    assert (code, json.loads(out.splitlines()[0])["text"]) == (0, "the gate is open")
    assert {path: path.read_bytes() for path in memory.rglob("*") if path.is_file()} == before


def test_run_for_people_prints_changes_and_a_line_of_figures(call: Call, memory: Path, stills: dict[str, Path]) -> None:
    code, out, err = call("run", "--source", stills["open"], "--ask", "is the gate open?", "--memory", memory)
    assert code == 0
    assert out.startswith("frame 0: is the gate open? the gate is open\n")
    assert "because of memory" in out
    assert "1 answers (1 looked)" in err
    assert "end of file" in err


def test_ctrl_c_ends_a_watch_with_its_figures(memory: Path, stills: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(600):  # a minute at the pace of a folder
        (folder / f"{i}.png").symlink_to(stills["open"])
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edge_ravlm.cli import main; main()"
    )
    command = ["run", "--source", folder, "--ask", "is the gate open?", "--memory", memory, "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        watching.send_signal(signal.SIGINT)
        rest, err = watching.communicate(timeout=60)
    assert (watching.returncode, err) == (0, "")
    assert first["text"] == "the gate is open"
    summary = json.loads(rest.splitlines()[-1])["summary"]
    assert summary["cameras"]["camera"]["state"] == "closed"
    assert summary["answers"] == len(rest.splitlines())
    assert summary["latency_ms"]["p50"] > 0


@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a", "a.webp"])
def test_a_contact_sheet_may_have_any_pictures_name(name: str) -> None:
    check_sheet(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "a.mp4", "a.jpg.zip"])
def test_a_contact_sheet_under_another_name_is_refused_beforehand(name: str) -> None:
    with pytest.raises(UsageError, match="contact sheet"):
        check_sheet(Path(name))
