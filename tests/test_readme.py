"""README and APPS.md are true: code runs, commands, keys and requests exist, links lead somewhere."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cyclopts
import msgspec
import pytest

from edge_ravlm.cli import build_app, run
from edge_ravlm.runtime.bench_cli import DEFAULT_REPORT
from edge_ravlm.runtime.cli import DEFAULT_SHEET
from edge_ravlm.runtime.serving.api import make
from edge_ravlm.runtime.serving.desk import Desk
from edge_ravlm.runtime.serving.guard import Guard
from edge_ravlm.runtime.watching.settings import AppSettings, CameraSettings, SinkSettings, WatchSettings, read_app

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
APPS = (ROOT / "runtime/APPS.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
NOT_RUN = (
    "edge-ravlm export",
    "edge-ravlm bundle verify my-bundle",
    "edge-ravlm run --source rtsp:",
    "edge-ravlm serve",
)
"""Lines that need the export extra, hours or a camera, or never end: their arguments are checked, they are not run."""


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert all(line.startswith("edge-ravlm ") for line in lines)
    return lines


def commands(app: cyclopts.App, prefix: str = "edge-ravlm") -> Iterator[tuple[str, Callable[..., Any]]]:
    """All commands below an app: full names and functions."""
    names = [name for name in app if not name.startswith("-")]
    if app.default_command is not None:
        yield prefix, app.default_command
    for name in names:
        yield from commands(app[name], f"{prefix} {name}")


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after what `make demo` runs in it."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\t\$\(BIN\)/edge-ravlm (demo .*)", makefile, re.MULTILINE)
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(shlex.split(line)) == 0
    return folder


@pytest.fixture
def gate(demonstrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the README's next steps need."""
    shutil.copytree(demonstrated, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_example_runs_and_answers(gate: Path) -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 10
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["answer"].text == "the gate is open"
    assert names["answer"].evidence[0].text == "the gate is open"
    assert (gate / "home.memory").is_dir()


def test_the_shell_examples_run_and_answer(gate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (app,) = blocks("toml")
    (gate / "now").mkdir()
    (gate / "now/1.jpg").write_bytes((gate / "build/demo-now.jpg").read_bytes())
    one_picture = app.replace("rtsp://camera.local/stream", "now").replace("[2, 3]", "[1, 1]")
    (gate / "home.toml").write_text(one_picture, encoding="utf-8")
    for line in command_lines():
        if not line.startswith(NOT_RUN):
            assert run(shlex.split(line)[1:]) == 0, line
    assert capsys.readouterr().out.count("the gate is open") >= 2
    (event,) = (gate / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(event)["text"] == "the gate is open"


def test_the_sink_for_a_broker_is_one(tmp_path: Path) -> None:
    (app,), (broker,) = blocks("toml"), blocks("toml", APPS)
    (tmp_path / "home.toml").write_text(app + broker, encoding="utf-8")
    assert [sink.kind for sink in read_app(tmp_path / "home.toml").sinks] == ["file", "mqtt"]


@pytest.mark.parametrize("line", command_lines())
def test_the_command_line_understands_every_example(line: str) -> None:
    build_app().parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)


def test_the_list_of_commands_is_the_list_of_commands() -> None:
    listed = set(re.findall(r"`(edge-ravlm [a-z ]+)`", TEXT.partition("## Commands")[2].partition("\n\nEvery")[0]))
    assert listed == dict(commands(build_app())).keys()


def test_every_command_speaks_json() -> None:
    for name, function in commands(build_app()):
        assert "json" in inspect.signature(function).parameters, name


def test_make_knows_every_target_that_is_named() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", TEXT, re.MULTILINE))
    named = {either or other for either, other in named}
    assert {"demo", "test", "setup", "check", "data"} <= named
    for target in named:
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


def test_extras_that_are_named_exist() -> None:
    extras = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]["optional-dependencies"]
    named = set(re.findall(r'pip install "\.\[([a-z-]+)\]"', TEXT))
    assert {"apps", "bench", "export", "openvino", "tensorrt", "tensorrt-rtx"} <= named <= extras.keys()
    assert "edge-ravlm[" not in TEXT  # the package is on no index: there is but a checkout to install from


def test_every_key_of_an_app_is_explained_with_its_default() -> None:
    parts = {"app": AppSettings, "cameras": CameraSettings, "watches": WatchSettings, "sinks": SinkSettings}
    explained: dict[str, dict[str, str]] = {part: {} for part in parts}
    part = ""
    for first, keys, meaning in re.findall(r"^\| (.*)\| (`[a-z_, `]+) \| (.*) \|$", APPS, re.MULTILINE):
        part = first.strip(" `[]") or part
        if part in parts:
            explained[part] |= dict.fromkeys(re.findall(r"[a-z_]+", keys), meaning)
    for part, settings in parts.items():
        fields = {field.name: field for field in msgspec.structs.fields(settings)}
        assert explained[part].keys() == fields.keys() - {"cameras", "watches", "sinks"}, part
        for name, meaning in explained[part].items():
            default = fields[name].default
            if isinstance(default, (bool, int, float)):
                shown = str(default).lower() if isinstance(default, bool) else f"{default:g}"
                assert re.search(rf"\((?:.*\D)?{shown}(?:\D.*)?\)$", meaning), (part, name, default, meaning)


def test_every_request_of_the_http_api_is_listed() -> None:
    (table,) = re.findall(r"\| request \|.*?\n\n", APPS, re.DOTALL)
    listed = {tuple(row) for row in re.findall(r"^\| `([A-Z]+) (/\S*)`", table, re.MULTILINE)}
    paths = make(Desk.__new__(Desk), Guard(None)).openapi()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    named = {(method, re.sub(r"\{id_\}", "ID", re.sub(r"\{camera\}", "NAME", path))) for method, path in served}
    assert listed == named | {("GET", "/"), ("GET", "/api/openapi.json")}


def test_links_and_scripts_lead_somewhere() -> None:
    for text, folder in ((TEXT, ROOT), (RESULTS, ROOT / "benchmarks")):
        linked = [folder / path for path in re.findall(r"\]\(([^)#]+)\)", text)]
        scripts = [ROOT / path for path in re.findall(r"\bbenchmarks/[\w/]+\.py", text)]
        assert linked
        assert scripts
        for path in linked + scripts:
            assert path.is_file(), path


def test_figures_of_the_readme_are_those_of_all_results() -> None:
    rows = re.findall(r"^\| .* \| (.*) \| .* \|$", TEXT.partition("## Figures")[2], re.MULTILINE)[1:]
    figures = [figure for row in rows for figure in re.findall(r"\d+\.\d+", row)]
    assert len(rows) == 5
    assert [figure for figure in figures if figure not in RESULTS] == []


def test_the_programs_of_the_environment_are_in_reach_before_the_first_is_called() -> None:
    assert -1 < TEXT.find("\n. .venv/bin/activate\n") < TEXT.find("\nedge-ravlm ")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_what_commands_write_unless_told_is_no_part_of_the_repository() -> None:
    written = [str(DEFAULT_SHEET), f"{DEFAULT_SHEET.stem}-open.jpg", f"{DEFAULT_REPORT}/report.md"]
    command = ["git", "-c", "safe.directory=*", "check-ignore", *written]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split() == written
