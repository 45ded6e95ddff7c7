"""How commands speak: results on stdout as they are, everything else on stderr."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import zipfile
from enum import Enum
from pathlib import Path

import pytest

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.cli import run
from edge_ravlm.console import complain, progress, say, say_json, table

Captured = pytest.CaptureFixture[str]


def test_results_and_complaints_go_their_own_ways(capsys: Captured) -> None:
    say("a result")
    complain("a complaint")
    assert capsys.readouterr() == ("a result\n", "a complaint\n")


def test_json_is_one_line_whatever_is_in_it(capsys: Captured) -> None:
    class Level(Enum):
        CACHED = "cached"

    value = {
        "text": 'two\nlines, "quotes" – 門',
        "path": Path("a/b"),
        "level": Level.CACHED,
        "nan": float("nan"),
        "manifest": Bundle.open(STARTER).manifest,
    }
    say_json(value)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    read = json.loads(out)
    assert (read["text"], read["path"], read["level"], read["nan"]) == (value["text"], "a/b", "cached", None)
    assert read["manifest"]["name"] == "starter"


@pytest.mark.parametrize("cell", ["[red]gate[/red]", "[/] gate", ":gate:", "a\\[b", "[link=x]y", "門 – ünï"])
def test_a_table_shows_its_cells_as_they_are(capsys: Captured, cell: str) -> None:
    table(f"title {cell}", ("column", "another"), [(cell, "1"), ("", "2")])
    out, err = capsys.readouterr()
    assert out.count(cell) == 2
    assert "another" in out
    assert err == ""


def test_control_characters_are_shown_and_never_reach_the_terminal(capsys: Captured) -> None:
    text = "a \x1b[31mred\x1b[0m\x07\r\x9b2J gate\x7f"
    say(f"two\nlines {text}")
    complain(text)
    table("", ("column",), [(text,)])
    out, err = capsys.readouterr()
    for shown in (out.partition("\n")[2], out, err):
        assert "\\x1b[31mred\\x1b[0m\\x07\\x0d\\x9b2J gate\\x7f" in shown
        assert not set(shown) & {"\x1b", "\x07", "\r", "\x9b", "\x7f"}
    assert out.startswith("two\nlines")
    say_json({"text": text})
    assert json.loads(capsys.readouterr().out)["text"] == text


def test_a_long_cell_is_folded_and_never_cut(capsys: Captured) -> None:
    table("", ("path",), [("x" * 300,)])
    assert capsys.readouterr().out.count("x") == 300


def test_a_table_without_rows_or_title_is_a_table(capsys: Captured) -> None:
    table("", ("column",), [])
    assert "column" in capsys.readouterr().out


def test_progress_is_silent_where_nobody_looks(capsys: Captured) -> None:
    with progress("importing", 3) as advance:
        for _ in range(3):
            advance()
        advance(completed=5, total=9)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_on_a_terminal_and_keeps_stdout_clean() -> None:
    """A real terminal on stderr, a pipe on stdout."""
    script = """
from edge_ravlm.console import progress, say
with progress("importing [x]", 4) as advance:
    advance()
    advance(completed=3, total=4)
say("done")
"""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.stdout == b"done\n"
    assert "importing" in shown
    assert "3/4" in shown


def test_a_failure_inside_a_progress_bar_comes_through(capsys: Captured) -> None:
    with pytest.raises(ZeroDivisionError), progress("importing"):
        raise ZeroDivisionError
    assert capsys.readouterr().out == ""


def command(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    """`edge-ravlm` as a process of its own, with pipes."""
    script = "from edge_ravlm.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("arguments", [("bundle", "inspect", "starter"), ("bundle", "inspect", "starter", "--json")])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: tuple[str, ...]) -> None:
    with command(*arguments) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_terminal_that_is_not_unicode_gets_escapes_and_no_traceback() -> None:
    with command("bundle", "inspect", "starter", PYTHONIOENCODING="ascii", PYTHONUTF8="0") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"starter" in out


# -- the bundle commands ----------------------------------------------------------------------------------------------


def test_inspect_shows_people_what_the_manifest_says(capsys: Captured) -> None:
    assert run(["bundle", "inspect", "starter"]) == 0
    shown = capsys.readouterr().out
    manifest = Bundle.open(STARTER).manifest
    for word in (manifest.name, manifest.target, "cosine_mean", manifest.sources[0].licence, manifest.tokenizer):
        assert word in shown


def test_inspect_gives_machines_all_of_it(capsys: Captured) -> None:
    assert run(["bundle", "inspect", "starter", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    bundle = Bundle.open(STARTER)
    assert read["sha256"] == bundle.sha256
    assert read["parity"] == read["manifest"]["parity"]["cpu-u8"]
    assert len(read["manifest"]["files"]) == len(bundle.manifest.files)


def test_a_bundle_is_not_packed_into_itself_nor_through_a_link(tmp_path: Path, capsys: Captured) -> None:
    assert run(["bundle", "pack", "starter", str(tmp_path / "a.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "b")
    assert run(["bundle", "pack", str(tmp_path / "b"), str(tmp_path / "b" / "out.zip")]) == 2
    assert "a place outside the bundle" in capsys.readouterr().err
    assert run(["bundle", "verify", str(tmp_path / "b")]) == 0
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.zip.part").symlink_to(tmp_path / "mine")
    assert run(["bundle", "pack", "starter", str(tmp_path / "a.zip")]) == 0
    assert (tmp_path / "mine").read_text() == "mine"


def test_names_that_are_not_utf8_do_not_end_a_command(tmp_path: Path, capsys: Captured) -> None:
    archive = tmp_path / "a\udcff.zip"
    assert run(["bundle", "pack", "starter", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["archive"] == str(archive)


def test_pack_and_verify(tmp_path: Path, capsys: Captured) -> None:
    archive = tmp_path / "starter.zip"
    assert run(["bundle", "pack", "starter", str(archive), "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert (packed["bytes"], packed["sha256"]) == (archive.stat().st_size, Bundle.open(STARTER).sha256)
    assert run(["bundle", "verify", str(archive)]) == 0
    assert "all as the manifest lists them" in capsys.readouterr().out
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    assert run(["bundle", "verify", str(archive)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edge-ravlm: bundle '")
    assert err.count("\n") == 1
