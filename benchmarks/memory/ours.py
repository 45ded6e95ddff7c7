"""Our memory behind the interface of all systems."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path

from edge_ravlm.runtime.memory import Memory, NewEntry, Space, index, ranking
from edge_ravlm.runtime.processors import kept_to, usable
from memory.data import DIM, Vectors

SPACES = {"image": Space("1" * 64, DIM)}
_BATCH = 5_000


class Ours:
    """The product's memory: SQLite with graphs beside it.

    The setting is the graphs' expansion, on one processor; -1 is what it found itself, 0 that on all processors.
    """

    def __init__(self) -> None:
        self._opened: dict[int, Memory] = {}

    def build(self, vectors: Vectors, folder: Path) -> None:
        """See ``System``, as for all that follow."""
        with Memory.open(folder, SPACES, auto_compact=False) as memory:
            for start in range(0, len(vectors), _BATCH):
                rows = enumerate(vectors[start : start + _BATCH], start)
                memory.add([NewEntry(f"thing {i}", vectors={"image": row}) for i, row in rows])
            memory.compact()

    def open(self, folder: Path) -> None:
        """Remember where; each setting has a memory of its own."""
        self._folder = folder

    def aim(self, setting: int) -> None:
        """Open it with that setting if it is not open yet."""
        if setting not in self._opened:
            self._opened[setting] = Memory.open(self._folder, SPACES)
            graph = self._opened[setting]._live.bases()[1]["image"].graphs
            if setting > 0 and graph is not None:
                graph.expansion = setting
        self._memory, self._processors = self._opened[setting], usable()[:1] if setting else []

    def search(self, query: Vectors, k: int) -> list[int]:
        """Ids were given in the order of positions, from 1."""
        with kept_to(self._processors):
            return [hit.id - 1 for hit in self._memory.search("image", query, k)]

    def add(self, vector: Vectors) -> None:
        """On the disk when this returns."""
        self._memory.add([NewEntry("one more", vectors={"image": vector})])

    def close(self) -> None:
        """Close all."""
        for memory in self._opened.values():
            memory.close()


def recipe() -> str:
    """What the files depend on beside the vectors."""
    code = [inspect.getsource(part) for part in (Ours.build, index, ranking)]
    return "\n".join([*code, version("usearch")])
