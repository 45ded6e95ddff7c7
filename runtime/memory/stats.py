"""A memory in numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FieldStats:
    """One field in numbers: its space, and how many vectors it has in all and in the tail."""

    space: str
    dim: int
    vectors: int
    tail: int


@dataclass(frozen=True, slots=True)
class Stats:
    """A memory in numbers.

    Attributes:
        entries: how many it holds.
        tail: vectors since the last compaction, in the field that has most.
        generation: number of the current generation, 0 before the first compaction.
        bytes: what the folder takes on disk.
        fields: per field.
    """

    entries: int
    tail: int
    generation: int
    bytes: int
    fields: Mapping[str, FieldStats]


def bytes_in(folder: Path) -> int:
    """Of all files in a folder, those of its folders too."""
    found = 0
    for place, _, names in os.walk(folder):  # goes on where a compaction sweeps a folder away meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                found += Path(place, name).stat().st_size
    return found
