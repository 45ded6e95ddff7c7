"""Environments of peers: a requirements file each, made into a venv on first use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement

from edge_ravlm.console import complain
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.machine import version

BENCHMARKS = Path(__file__).resolve().parents[1]
BUILD = BENCHMARKS.parent / "build" / "bench"
"""What benchmarks make and use again."""

_SPINNING = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


def requirements(name: str) -> Path:
    """The file of a named environment."""
    return Path(__file__).with_name("env") / f"{name}.txt"


def wanted(file: Path) -> list[Requirement]:
    """Its requirements: what is measured is pinned, what our own code needs beside it may be any that we support."""
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def interpreter(file: Path, build: Path = BUILD) -> Path:
    """A Python in which every requirement of the file holds: the running one if that is so, else that of a venv.

    Args:
        file: of requirements.
        build: where venvs are made and found again.

    Raises:
        EdgeRavlmError: it cannot be installed.
    """
    if all(_holds(one) for one in wanted(file)):
        return Path(sys.executable)
    key = hashlib.sha256(file.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = build / "env" / f"{file.stem}-{key}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        names = ", ".join(one.name for one in wanted(file))
        complain(f"environment '{file.stem}': installing {names}; this happens once.")
        _run("venv", "--clear", "--without-pip", str(folder), file=file)
        _run("pip", "--python", str(python), "install", "--quiet", "--requirement", str(file), file=file)
        ready.touch()
    return python


def variables(threads: int) -> Mapping[str, str]:
    """A peer's environment variables.

    How long idle threads spin is left to each library: GNU OpenMP's, which PyTorch brings, and ONNX Runtime's spin for
    some milliseconds between parallel parts, which is what makes them fast, and then sleep. The rest between answers is
    longer, and ``idle_cpu_ms`` tells whether it was.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _SPINNING}
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), *filter(None, [kept.get("PYTHONPATH")])]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**kept, **limits, "PYTHONPATH": os.pathsep.join(paths)}


def hide_torchvision() -> None:
    """Let nothing in this process import it from here on: transformers does where it finds it, without any need.

    PyPI's is built against CUDA, and fails to be imported beside a CPU build of torch.
    """
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # as the import system has it


def _holds(one: Requirement) -> bool:
    """Whether such a version is installed here; torch's 2.13.0+cpu is a 2.13.0."""
    found = version(one.name)
    return found is not None and one.specifier.contains(found)


def _run(*arguments: str, file: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeRavlmError(
            f"environment '{file.stem}'",
            expected=f"what {file.name} lists to be installed",
            got=(done.stderr.strip().splitlines() or ["no message"])[-1],
            do="check the network, or choose other peers with --only",
        )
