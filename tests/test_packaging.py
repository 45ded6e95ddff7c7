"""The wheel: everything is in it, nothing else is, and installed alone it does the main job.

`edge_ravlm/export` and `edge_ravlm/runtime` are links; whether a build tool follows them is checked here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HALVES = ("export", "runtime")
TREE = ("edge_ravlm", *HALVES, "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.wheel

API = """
import importlib.util
import numpy as np
import edge_ravlm

for name in ("torch", "onnx", "pytest"):
    assert importlib.util.find_spec(name) is None, name
dark, light = (np.full((240, 320, 3), shade, np.uint8) for shade in (20, 230))
with edge_ravlm.load("starter", memory="home.memory", budget_ms=60_000) as ravlm:
    ravlm.remember(dark, "the lamp is off")
    ravlm.remember(light, "the lamp is on")
with edge_ravlm.load("starter", memory="home.memory", budget_ms=60_000) as ravlm:
    print(ravlm.ask(dark, "is the lamp on?").text)
"""


def files_of(folder: Path, name: str) -> set[str]:
    """Every file below a folder, under another name for it, links not followed."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{name}/{path.relative_to(folder).as_posix()}" for path in found}


def expected_files() -> set[str]:
    """What the package has to hold: the real folders' files under their import paths."""
    ground = {name for name in files_of(ROOT / "edge_ravlm", "edge_ravlm") if name.split("/")[1] not in HALVES}
    return ground.union(*(files_of(ROOT / half, f"edge_ravlm/{half}") for half in HALVES))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist made from a copy of the tree, and the wheel made from that sdist."""
    # A copy: builds leave files behind, and setuptools packs what an earlier build left.
    tree = tmp_path_factory.mktemp("tree")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the wheel did not install; this test needs PyPI:\n{done.stderr}"
    return folder / "bin"


def call(bare: Path, cwd: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the bare environment, with nothing of this one in reach."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(bare / program), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_links_point_to_the_real_folders() -> None:
    for half in HALVES:
        assert (ROOT / "edge_ravlm" / half).readlink() == Path("..") / half


def test_the_wheel_holds_every_file_of_the_three_folders_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected_files()
    starter = {name for name in packed if name.startswith("edge_ravlm/starter/")}
    assert {"edge_ravlm/starter/manifest.json", "edge_ravlm/clips/yard.mp4", "edge_ravlm/py.typed"} <= packed
    assert len(starter) > 5


def test_the_sdist_holds_the_same_and_no_links(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    inside = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert {name for name in inside if name.startswith("edge_ravlm/")} == expected_files()
    assert not [member.name for member in members if member.issym()]


def test_the_wheel_is_small_and_says_what_it_is(wheel: Path) -> None:
    assert wheel.stat().st_size < 25_000_000
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        head = Parser().parsestr(archive.read(metadata).decode())
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert head["Requires-Python"] == ">=3.10"
    assert head["License-Expression"] == "Apache-2.0"
    extras = head.get_all("Provides-Extra", [])
    assert {"export", "tensorrt", "tensorrt-rtx", "apps", "dev"} <= set(extras)
    needed = [line for line in head.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in needed if line.startswith(("torch", "onnx>", "onnx=", "tensorrt"))]


def test_installed_alone_it_does_the_main_job(bare: Path, tmp_path: Path) -> None:
    done = call(bare, tmp_path, "edge-ravlm", "demo", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert figures["correct"] >= 0.95 * figures["questions"] > 0
    assert figures["abstained_before_teaching"] == figures["asked_before_teaching"]
    assert {"frames", "latency_ms", "budget_ms", "deadline_misses"} <= figures.keys()
    assert (tmp_path / figures["sheet"]).stat().st_size > 10_000


def test_installed_alone_it_remembers_between_processes(bare: Path, tmp_path: Path) -> None:
    done = call(bare, tmp_path, "python", "-I", "-W", "error", "-c", API)
    assert (done.stdout, done.stderr) == ("the lamp is off\n", "")


def test_installed_alone_the_machine_and_the_bundle_are_well(bare: Path, tmp_path: Path) -> None:
    for arguments in (("doctor",), ("bundle", "verify", "starter")):
        done = call(bare, tmp_path, "edge-ravlm", *arguments, "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["ok"] is True


def test_without_the_export_extra_help_still_shows_every_command(bare: Path, tmp_path: Path) -> None:
    done = call(bare, tmp_path, "edge-ravlm", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("demo", "ask", "run", "memory", "search", "bundle", "doctor", "export", "engine", "estimate"):
        assert f" {command} " in done.stdout


def test_without_the_export_extra_its_commands_say_what_to_install(bare: Path, tmp_path: Path) -> None:
    for arguments in (
        ("export", "starter", "--target", "cpu-x86", "-o", "out"),
        ("estimate", "starter", "--target", "rtx-40"),
    ):
        done = call(bare, tmp_path, "edge-ravlm", *arguments)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert 'pip install ".[' in done.stderr
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
