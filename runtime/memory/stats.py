"""A memory in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
