"""Environments of peers: made from a list of pinned requirements on first use."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edge_ravlm.console import complain
from edge_ravlm.errors import EdgeRavlmError


def python_for(requirements: Path, cache: Path) -> Path:
    """A Python that has what a file of ``name==version`` lines asks for: this one, or that of a venv in cache.

    Raises:
        EdgeRavlmError: what is asked for cannot be installed.
    """
    lines = requirements.read_text(encoding="utf-8").splitlines()
    pins = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if all(_is_here(pin) for pin in pins):
        return Path(sys.executable)
    key = hashlib.sha256("\n".join([sys.version, *pins]).encode()).hexdigest()[:12]
    folder = cache / f"{requirements.stem}-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        complain(f"Setting up {folder} with {', '.join(pins)}.")
        _run(requirements, sys.executable, "-m", "venv", "--clear", str(folder))
        _run(requirements, str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        complete.touch()
    return python


def _is_here(pin: str) -> bool:
    name, _, wanted = pin.partition("==")
    try:
        return version(name) == wanted
    except PackageNotFoundError:
        return False


def _run(requirements: Path, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        raise EdgeRavlmError(
            f"environment '{requirements.stem}'",
            expected=f"what {requirements.name} lists to be installed",
            got=errors[-1] if errors else f"exit code {done.returncode} from {' '.join(command[1:4])}",
            do="check the network and that a C++ compiler is there",
        )
