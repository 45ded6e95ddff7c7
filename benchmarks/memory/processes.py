"""A system's process, from the benchmark's side, and the files it works on."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

import edge_ravlm.errors
from edge_ravlm.errors import EdgeRavlmError
from memory import ours, systems
from memory.systems import OURS

_BENCHMARKS = Path(__file__).resolve().parents[1]
_PRODUCT = Path(edge_ravlm.errors.__file__).resolve().parents[1]
REQUIREMENTS = _BENCHMARKS / "peers" / "env" / "memory.txt"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class SystemProcess:
    """A worker of ``name``, on ``folder`` and what ``data.kept`` made; use it in a ``with`` statement.

    Args:
        name: one of ``SYSTEMS``.
        folder: its files.
        data: the vectors, queries and truth.
        python: the interpreter that has its packages.
    """

    def __init__(self, name: str, folder: Path, data: Path, python: Path) -> None:
        self._name = name
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [str(python), "-m", "memory.worker", name, str(folder), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": f"{_BENCHMARKS}{os.pathsep}{_PRODUCT}"},
        )

    def tell(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have one of ``Worker``'s methods called; raises EdgeRavlmError when the process died of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return msgspec.json.decode(line, type=dict[str, Any])

    def __enter__(self) -> SystemProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _died(self) -> EdgeRavlmError:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return EdgeRavlmError(
            f"memory '{self._name}'",
            expected="an answer",
            got=lines[-1].rstrip(".") if lines else f"exit code {code}",
            do=f"install what {REQUIREMENTS.name} lists, or leave it out with --only",
        )


def in_cache(name: str, data: Path, cache: Path) -> bool:
    """Whether a system's files over the vectors of ``data`` are there."""
    return (_place(name, data, cache) / "built.json").exists()


def built(name: str, data: Path, python: Path, cache: Path) -> tuple[Path, Mapping[str, float]]:
    """A system's files over the vectors of ``data``, built unless they are in cache, and what building took then.

    Returns:
        their folder; ``build_s``, ``build_cpu_s`` and ``size_mb``.
    """
    folder = _place(name, data, cache)
    files, note = folder / "files", folder / "built.json"
    if not note.exists():
        shutil.rmtree(folder, ignore_errors=True)
        files.mkdir(parents=True)
        with SystemProcess(name, files, data, python) as process:
            took = process.tell("build")
        size_mb = sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) / 1e6
        note.write_bytes(msgspec.json.encode({**took, "size_mb": size_mb}))
    return files, msgspec.json.decode(note.read_bytes(), type=dict[str, float])


def _place(name: str, data: Path, cache: Path) -> Path:
    """Named after the data too: with another number of queries the vectors are others."""
    return cache / f"{name}-{data.name}-{_key(name)}"


def _key(name: str) -> str:
    """Changes with whatever changes a system's files."""
    recipe = ours.recipe() if name == OURS else inspect.getsource(systems) + REQUIREMENTS.read_text(encoding="utf-8")
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]
