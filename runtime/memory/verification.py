"""The full check of a memory: what `edge-ravlm memory verify` reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_ravlm.errors import MemoryDamaged
from edge_ravlm.runtime.memory import generations
from edge_ravlm.runtime.memory.database import FILE, Mode, folder_lock
from edge_ravlm.runtime.memory.entries import Ids, Rows, Space, Where
from edge_ravlm.runtime.memory.index import Base
from edge_ravlm.runtime.memory.ranking import found_in
from edge_ravlm.runtime.memory.store import Store

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found.

    Attributes:
        problems: one sentence each, naming the file; empty when the memory is sound.
        generation: the generation that was checked.
        files: its damaged files; they can be made again from memory.db.
    """

    problems: list[str]
    generation: int
    files: list[str]


def examine(folder: Path, mode: Mode) -> Findings:
    """Check SQLite, entries, vectors and files, and that they agree, over a connection of its own."""
    # The lock keeps others from sweeping the generation away under this check.
    with folder_lock(folder, wait=True), closing(Store(folder, mode)) as store, store.snapshot():
        problems = [f"{FILE}: {complaint}" for complaint in store.complaints()]
        problems += _altered_entries(store)
        number, files = store.state().generation, store.files()
        place = generations.folder_of(folder, number)
        bad = generations.damage(place, files)
        problems += [f"{place.name}/{fault}" for fault in bad.values()]
        for name, space in store.spaces().items():
            own = [file for file in files if file.name.split(".")[0] == name]
            sound = not any(file.name in bad for file in own)
            bases = generations.open_bases(folder, number, own, {name: space})[0] if sound else {}
            problems += _disagreements(store, name, space, bases.get(name), place.name)
        return Findings(problems, number, list(bad))


def _altered_entries(store: Store) -> Iterator[str]:
    ids = store.ids(Where()).tolist()
    for start in range(0, len(ids), _BATCH):
        yield from _altered_among(store, ids[start : start + _BATCH])


def _altered_among(store: Store, ids: list[int]) -> list[str]:
    try:
        store.entries(ids)
    except MemoryDamaged as damage:
        return [f"{FILE}: {damage.got}"]
    return []


def _disagreements(store: Store, name: str, space: Space, base: Base | None, place: str) -> Iterator[str]:
    """Vectors that are not what was written, and where the generation holds other rows than memory.db."""
    tail = store.vector_ids_since(name, store.state().covered)
    covered = 0
    try:
        for ids, rows in store.all_vectors(name, space.dim, _BATCH):
            old = ~found_in(tail, ids)[1]
            covered += int(old.sum())
            if base is not None and not _holds(base, ids[old], rows[old]):
                yield f"{place}/{name}.f16 disagrees with {FILE} between entries {ids[0]} and {ids[-1]}"
    except MemoryDamaged as damage:
        yield f"{FILE}: {damage.got}"
        return
    if base is None:
        return
    replaced = np.union1d(store.gone_since(0)[1], tail)
    surplus = len(base.ids) - int(found_in(base.ids, replaced)[1].sum()) - covered
    if surplus:
        yield f"{place}/{name}.ids lists {surplus} entries more than {FILE}"
    if base.graphs is not None and len(base.graphs) < len(base.ids):
        yield f"{place}/{name}'s graphs hold {len(base.graphs)} rows instead of {len(base.ids)}"


def _holds(base: Base, ids: Ids, rows: Rows) -> bool:
    places, present = found_in(base.ids, ids)
    return bool(present.all()) and bool(np.array_equal(base.rows[places], rows))
