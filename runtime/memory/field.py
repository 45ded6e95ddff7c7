"""One field as searches see it: a base on disk, minus what was removed or replaced, plus the tail in RAM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.runtime.memory.entries import Ids, Rows, Vector
from edge_ravlm.runtime.memory.index import Base
from edge_ravlm.runtime.memory.ranking import best, cosines, found_in

_NOTHING: tuple[Ids, NDArray[np.float32]] = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class FieldView:
    """One field at one moment; immutable, so searches need no lock.

    Attributes:
        base: the generation's rows, None before the first compaction.
        dead: ascending positions in base that no longer count.
        tail_ids: int64 [t], in order of arrival.
        tail_rows: float16 [t, D].
        tail_alive: bool [t].
    """

    base: Base | None
    dead: Ids
    tail_ids: Ids
    tail_rows: Rows
    tail_alive: NDArray[np.bool_]

    @property
    def tail_count(self) -> int:
        """Rows in the tail that count."""
        return int(np.count_nonzero(self.tail_alive))

    @property
    def count(self) -> int:
        """Rows in base and tail that count."""
        return self.tail_count + (len(self.base.ids) - len(self.dead) if self.base else 0)

    def search(self, query: Vector, k: int, matches: Ids | None) -> tuple[Ids, NDArray[np.float32]]:
        """Ids and cosines of the k best among `matches` (ascending; None means all), ties by id."""
        base = self.base.search(query, k, self.dead, matches) if self.base else _NOTHING
        if not len(self.tail_ids):
            return best(*base, k)
        tail = self._search_tail(query, matches)
        return best(np.concatenate([base[0], tail[0]]), np.concatenate([base[1], tail[1]]), k)

    def rows(self, ids: Ids) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The vectors of ids, float32 [n, D] (zeros where there is none), and which there are, bool [n]."""
        rows = np.zeros((len(ids), self.tail_rows.shape[1]), np.float32)
        places, present = found_in(self.base.ids if self.base else _NOTHING[0], ids)
        present &= ~found_in(self.dead, places)[1]
        if self.base:
            rows[present] = self.base.rows[places[present]]
        alive = np.flatnonzero(self.tail_alive)
        by_id = alive[np.argsort(self.tail_ids[alive])]
        places, in_tail = found_in(self.tail_ids[by_id], ids)
        rows[in_tail] = self.tail_rows[by_id[places[in_tail]]]
        return rows, present | in_tail

    def _search_tail(self, query: Vector, matches: Ids | None) -> tuple[Ids, NDArray[np.float32]]:
        wanted = self.tail_alive
        if matches is not None:
            wanted = wanted & found_in(matches, self.tail_ids)[1]
        if wanted.all():
            return self.tail_ids, cosines(self.tail_rows, query)
        chosen = np.flatnonzero(wanted)
        return self.tail_ids[chosen], cosines(self.tail_rows[chosen], query)


class Field:
    """One field's mutable state; its owner guards it with a lock and hands out views."""

    def __init__(self, dim: int, base: Base | None) -> None:
        self._base = base
        self._dead: Ids = np.empty(0, np.int64)
        self._count = 0
        self._ids: Ids = np.empty(64, np.int64)
        self._rows: Rows = np.empty((64, dim), np.float16)
        self._alive = np.zeros(64, np.bool_)

    def view(self) -> FieldView:
        """The field as it is now; later changes do not show in it."""
        n = self._count
        return FieldView(self._base, self._dead, self._ids[:n], self._rows[:n], self._alive[:n])

    def put(self, ids: Ids, rows: Rows) -> None:
        """Take rows (float16 [n, D]) that are new or replace those of the same ids."""
        self.drop(ids)
        start, end = self._count, self._count + len(ids)
        self._grow(end)
        self._ids[start:end], self._rows[start:end], self._alive[start:end] = ids, rows, True
        self._count = end

    def drop(self, ids: Ids) -> None:
        """Forget ids, wherever they are; unknown ones are ignored."""
        if self._base:
            places, present = found_in(self._base.ids, ids)
            self._dead = np.union1d(self._dead, places[present])
        hit = np.isin(self._ids[: self._count], ids)
        if hit.any():
            self._alive = self._alive.copy()  # views share the old one
            self._alive[: self._count][hit] = False

    def _grow(self, needed: int) -> None:
        if needed <= len(self._alive):  # the last one to grow: Ctrl-C may come in between
            return
        size = max(needed, 2 * len(self._alive))
        for name in ("_ids", "_rows", "_alive"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), old.dtype)
            new[: self._count] = old[: self._count]
            setattr(self, name, new)
