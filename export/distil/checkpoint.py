"""Where a training stands, as safetensors files that are whole or not there at all, and its log."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from edge_ravlm.errors import DataError, StorageError
from edge_ravlm.files import storing

CHECKPOINT, STUDENT = "checkpoint.safetensors", "student.safetensors"
LOG = "log.csv"
COLUMNS = (
    "step",
    "loss",
    "cosine",
    "relational",
    "tokens",
    "pairs",
    "proxies",
    "captions",
    "held_out",
    "rate",
    "seconds",
)

Tensors = Mapping[str, Tensor]


class Standing(msgspec.Struct, forbid_unknown_fields=True):
    """The plain figures of a training.

    Attributes:
        step: updates done.
        best: lowest held-out loss so far.
        stale: looks at the held-out part since then.
        seconds: spent so far.
    """

    step: int = 0
    best: float | None = None
    stale: int = 0
    seconds: float = 0.0


@dataclass
class Stored:
    """A file's tensors, by group and name, and its figures."""

    standing: Standing
    groups: Mapping[str, Tensors]


def write(path: Path, run: str, groups: Mapping[str, Tensors], standing: Standing | None = None) -> None:
    """Put the file in place of the one there; raises StorageError when the disk refuses.

    Args:
        path: of the file.
        run: fingerprint of settings, teacher and student.
        groups: tensors by group and name; neither may hold a slash.
        standing: the figures that belong to them.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, part, {"run": run, "standing": msgspec.json.encode(standing or Standing()).decode()})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise _refused(path.parent, error) from error


def read(path: Path, run: str) -> Stored | None:
    """What ``write`` left, or None where there is nothing.

    Raises:
        DataError: it belongs to a run with other settings, teacher or student, or it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            standing = msgspec.json.decode(about["standing"], type=Standing)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, KeyError, msgspec.DecodeError, OSError) as error:
        raise _foreign(path, "a whole file", str(error)) from error
    if about.get("run") != run:
        raise _foreign(path, "the same settings, teacher and student as now", "those of another run")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, member = name.partition("/")
        groups.setdefault(group, {})[member] = tensor
    return Stored(standing, groups)


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers, as one group of a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {f"{row}.{name}": tensor for row, found in state.items() for name, tensor in found.items()}


def put_back(optimizer: Optimizer, group: Tensors) -> None:
    """Let it remember what ``moments`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in group.items():
        row, _, member = name.partition(".")
        state.setdefault(int(row), {})[member] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Log:
    """One CSV row a step; rows after the checkpoint that a run goes on from are dropped.

    Args:
        path: of the file.
        step: updates that the checkpoint has seen.
        columns: names of the figures, ``step`` and ``seconds`` among them.
    """

    def __init__(self, path: Path, step: int, columns: Sequence[str] = COLUMNS) -> None:
        self._path, self._columns = path, columns
        kept: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                # A row that was being written when the run was killed has no step, or no seconds.
                kept = [row for row in csv.DictReader(file) if row.get("seconds") and int(row["step"] or 0) <= step]
        self._write("w", kept)

    def add(self, **figures: float) -> None:
        """One row; a column without a figure stays empty."""
        self._write("a", [{name: f"{value:.6g}" for name, value in figures.items()}])

    def _write(self, mode: str, rows: list[dict[str, str]]) -> None:
        with storing_in(self._path.parent), self._path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


def storing_in(folder: Path) -> AbstractContextManager[None]:
    """Around writing there: what the disk refuses is a StorageError."""
    return storing(f"folder '{folder}'", do=_ELSEWHERE)


def _refused(folder: Path, error: Exception) -> StorageError:
    got = getattr(error, "strerror", None) or str(error)
    return StorageError(f"folder '{folder}'", expected="a place that can be written", got=got, do=_ELSEWHERE)


_ELSEWHERE = "free space there or choose another folder"


def _foreign(path: Path, expected: str, got: str) -> DataError:
    return DataError(
        f"checkpoint '{path}'", expected=expected, got=got, do="delete it to start again, or undo the change"
    )
