"""Folding the tail into a new generation while searches and additions go on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge_ravlm.runtime.memory import generations, index
from edge_ravlm.runtime.memory.database import folder_lock
from edge_ravlm.runtime.memory.entries import Space
from edge_ravlm.runtime.memory.faults import reported
from edge_ravlm.runtime.memory.field import FieldView
from edge_ravlm.runtime.memory.index import Base
from edge_ravlm.runtime.memory.live import Live
from edge_ravlm.runtime.memory.store import SealedFile, State, Store

BATCH_ROWS = 4096

TAIL_ROWS = 8192
TAIL_SHARE = 1 / 16
"""A compaction is due above the larger of these (rows; share of all): scanning 8192 costs 1 ms a search."""

Progress = Callable[[int, int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """A generation that is complete on disk but not yet current.

    Attributes:
        folder: where it was built.
        origin: the state it was built from.
        covered: it holds vectors up to this seq.
        gone: and lacks entries removed up to this seq.
        files: what it consists of.
    """

    folder: Path
    origin: State
    covered: int
    gone: int
    files: list[SealedFile]


def build(
    memory: Path,
    folder: Path,
    bases: tuple[int, Mapping[str, Base]],
    progress: Progress | None,
) -> Built:
    """Write a generation from one moment of the database, over a connection of its own.

    Args:
        memory: the memory's folder.
        folder: an empty folder to build in.
        bases: a generation's number and its verified bases; extended if that is the current one.
        progress: told (vectors done, vectors in all).
    """
    with closing(Store(memory, "ro")) as store, store.snapshot():
        origin = store.state()
        previous = bases[1] if bases[0] == origin.generation else {}
        spaces = store.spaces()
        counter = _Counter({name: store.vector_count(name) for name in spaces}, progress)
        files = [
            file
            for name, space in spaces.items()
            if counter.totals[name]
            for file in _build_field(store, folder / name, space, previous.get(name), counter)
        ]
        return Built(folder, origin, store.newest_vector(), store.gone_since(0)[0], generations.seal(files))


def publish(built: Built, memory: Path, store: Store) -> bool:
    """Make a built generation current in one transaction; False if another one became current meanwhile."""
    with store.writing():
        current = store.state().generation
        if current != built.origin.generation:
            return False
        generations.put_in_place(built.folder, memory, current + 1)
        store.set_generation(current + 1, covered=built.covered, gone=built.gone, files=built.files)
    return True


class Compactor:
    """Runs compactions of one open memory, one at a time, now or in the background."""

    def __init__(self, memory: Path, live: Live, store: Store | None, write_lock: threading.Lock, auto: bool) -> None:
        self._memory = memory
        self._live = live
        self._store = store
        self._write_lock = write_lock
        self._auto = auto
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failed_at = 0

    def join(self) -> None:
        """Wait for the compaction in the background, if there is one."""
        with self._starting:
            thread, self._auto = self._thread, False
        if thread is not None:
            thread.join()

    def run(self, progress: Progress | None) -> None:
        """Compact now, after whoever else is compacting."""
        self._compact(wait=True, progress=progress)

    def run_if_due(self) -> None:
        """Start a compaction in the background when searches would gain from it."""
        with self._starting:
            idle = self._thread is None or not self._thread.is_alive()
            if self._auto and self._store is not None and idle and self._due():
                self._thread = threading.Thread(target=self._run_quietly, name="memory-compaction", daemon=True)
                self._thread.start()

    def _due(self) -> bool:
        fields = self._live.view().fields.values()
        load = max(map(_load, fields), default=0)
        rows = max((field.count for field in fields), default=0)
        if self._failed_at:
            return load > 2 * self._failed_at
        return self._live.lost or load > max(TAIL_ROWS, rows * TAIL_SHARE)

    def _run_quietly(self) -> None:
        try:
            self._compact(wait=False, progress=None)
            self._failed_at = 0
        except Exception as error:  # whatever it is, the memory works without this compaction
            self._failed_at = max(map(_load, self._live.view().fields.values()), default=0) + 1
            _log.warning("memory '%s': compaction put off: %s", self._memory, error)

    def _compact(self, *, wait: bool, progress: Progress | None) -> None:
        with reported(self._memory), folder_lock(self._memory, wait=wait) as held:
            loads = map(_load, self._live.view().fields.values())
            if self._store is None or not held or not (any(loads) or self._live.lost):
                return
            with generations.building(self._memory) as folder:
                built = build(self._memory, folder, self._live.bases(), progress)
                with self._write_lock:
                    publish(built, self._memory, self._store)
            generations.sweep(self._memory, self._live.view().generation)


def _load(field: FieldView) -> int:
    """Rows that a compaction would take off every search's back."""
    return len(field.tail_ids) + len(field.dead)


class _Counter:
    """Vectors done, over all fields."""

    def __init__(self, totals: Mapping[str, int], progress: Progress | None) -> None:
        self.totals = totals
        self._progress = progress
        self._done = 0

    def advance(self, rows: int) -> None:
        self._done += rows
        if self._progress is not None:
            self._progress(self._done, sum(self.totals.values()))


def _build_field(store: Store, stem: Path, space: Space, previous: Base | None, counter: _Counter) -> list[Path]:
    name, total = stem.name, counter.totals[stem.name]
    added = store.vector_ids_since(name, store.state().covered)
    keep = previous if index.worth_extending(previous, total, added) else None
    batches = store.all_vectors(name, space.dim, BATCH_ROWS)
    return index.build(stem, batches, total, previous=keep, done=counter.advance)
