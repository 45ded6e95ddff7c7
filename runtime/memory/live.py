"""The memory as this process sees it: follows what any process wrote, and hands out views to search."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edge_ravlm.errors import SpaceMismatch, StorageError, UsageError
from edge_ravlm.runtime.memory.database import Mode, reading_mode
from edge_ravlm.runtime.memory.entries import Ids, Space, Where
from edge_ravlm.runtime.memory.faults import reported
from edge_ravlm.runtime.memory.field import Field, FieldView
from edge_ravlm.runtime.memory.filters import FilterCache
from edge_ravlm.runtime.memory.generations import GenerationDamaged, open_bases
from edge_ravlm.runtime.memory.index import Base
from edge_ravlm.runtime.memory.store import State, Store

_RELOADS = 20
"""Generations that may be replaced under our hands in a row before we give up."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class View:
    """A memory at one moment; immutable.

    Attributes:
        version: of all that answers depend on.
        generation: the current generation's number, 0 for none.
        spaces: each field's space.
        fields: each field's rows.
    """

    version: int
    generation: int
    spaces: Mapping[str, Space]
    fields: Mapping[str, FieldView]

    def field(self, name: str) -> tuple[Space, FieldView]:
        """A field's space and rows; raises UsageError if there is no such field."""
        if name not in self.fields:
            raise UsageError(
                f"field '{name}'",
                expected=" or ".join(self.fields) or "a field of this memory (it has none)",
                got=f"'{name}'",
                do="name one of the memory's fields",
            )
        return self.spaces[name], self.fields[name]


class Live:
    """Owns the reading connection; every method may be called from any thread.

    Attributes:
        lost: the generation on disk was damaged, so everything is served from RAM until the next compaction.
    """

    def __init__(self, folder: Path, mode: Mode, expected: Mapping[str, Space]) -> None:
        self._folder, self._mode = folder, mode
        self._expected = dict(expected)
        self._lock = threading.RLock()
        self._store = Store(folder, mode)
        self._open, self._process = True, os.getpid()
        self._filters = FilterCache()
        self._fields: dict[str, Field] = {}
        self._bases: tuple[int, dict[str, Base]] = (0, {})
        self._vector_seq = self._gone_seq = 0
        self._seen = -1
        self._earlier = 0  # the version that what lay there before had come to
        self._view = View(0, -1, {}, {})
        self.lost = False

    def close(self) -> None:
        """Close the connection; views handed out stay usable."""
        with self._lock:
            self._open = False
            self._store.close()

    def view(self) -> View:
        """The memory as it is now, other processes' latest commits included."""
        with self.reading():
            return self._view

    def matching(self, where: Where | None) -> tuple[View, Ids | None]:
        """The memory as it is now, and the ascending ids that match; None means all."""
        with self.reading() as store:
            if not where:
                return self._view, None
            return self._view, self._filters.ids(where, store.newest_id(), store.ids)

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """The reading connection, for short reads under the lock, after catching up."""
        self.check_open()  # before a lock that another thread may have held when this process was forked
        with self._lock, reported(self._folder):
            self.check_open()
            self._catch_up()
            yield self._store

    def check_open(self) -> None:
        """Raise UsageError when it was closed, or opened by the process that this one was forked from.

        SQLite's connections, locks and the models' threads do not survive a fork.
        """
        if os.getpid() != self._process:
            raise UsageError(
                f"memory '{self._folder}'",
                expected="one that this process has opened",
                got="its parent's",
                do="open it in the new process, best one that multiprocessing's 'spawn' started",
            )
        if not self._open:
            raise UsageError(
                f"memory '{self._folder}'", expected="an open memory", got="a closed one", do="open it again"
            )

    def bases(self) -> tuple[int, dict[str, Base]]:
        """The generation in use and its verified bases."""
        with self._lock:
            return self._bases

    def expect(self, field: str, space: Space) -> None:
        """From now on a field of this space is the right one."""
        with self._lock:
            if field in self._expected:
                self._expected[field] = space

    def reload(self, distrusted: Collection[str] = ()) -> tuple[int, dict[str, str]]:
        """Start over from the disk.

        Args:
            distrusted: files to hash in full whatever their stamps say.

        Returns:
            the generation's number, and the stamps of files that had to be hashed in full, by name.

        Raises:
            SpaceMismatch: a field was made with another encoder than the one this memory was opened for.
        """
        with self._lock, reported(self._folder):
            for _ in range(_RELOADS):
                with self._store.snapshot():
                    state, files, spaces = self._store.state(), self._store.files(), self._store.spaces()
                check_spaces(self._folder, spaces, self._expected)
                files = [replace(file, stamp="") if file.name in distrusted else file for file in files]
                try:
                    bases, stamps = open_bases(self._folder, state.generation, files, spaces)
                    lost = False
                except GenerationDamaged as error:
                    if self._store.state().generation != state.generation:
                        continue  # not damaged but swept by another process that published its successor
                    _log.warning("memory '%s': %s; serving from memory.db instead", self._folder, error)
                    bases, stamps, lost = {}, {}, True
                if self._adopt(state, spaces, bases, lost):
                    return state.generation, stamps
        raise StorageError(
            f"memory '{self._folder}'",
            expected="a generation that stays for a moment",
            got=f"{_RELOADS} new ones in a row",
            do="stop the other process that compacts this memory",
        )

    def _adopt(self, origin: State, spaces: dict[str, Space], bases: dict[str, Base], lost: bool) -> bool:
        with self._store.snapshot():
            state = self._store.state()
            if state.generation != origin.generation:
                return False
            self._fields = {name: Field(space.dim, bases.get(name)) for name, space in spaces.items()}
            self._bases, self.lost = (state.generation, bases), lost
            self._vector_seq, self._gone_seq = 0 if lost else state.covered, 0
            self._filters.clear()
            self._follow(state, spaces)
        return True

    def _catch_up(self) -> None:
        if self._store.outdated():
            mode: Mode = "rw" if self._mode == "rw" else reading_mode(self._folder)
            old, self._store = self._store, Store(self._folder, mode)
            self._seen = -1
            if not self._store.same_file(old):  # its numbers mean something else: nothing of the old one is kept
                _log.warning("memory '%s': another one is in its place and is served from now on", self._folder)
                self._earlier = self._view.version
                self._view = replace(self._view, generation=-1)
            old.close()
        seen = self._store.data_version()
        if seen == self._seen:
            return
        with self._store.snapshot():
            state, spaces = self._store.state(), self._store.spaces()
            same = state.generation == self._view.generation and spaces == self._view.spaces
            if same:
                self._follow(state, spaces)
        if not same:
            self.reload()
        self._seen = seen

    def _follow(self, state: State, spaces: dict[str, Space]) -> None:
        """Take in what was added and removed since the last time; inside a snapshot."""
        for name, field in self._fields.items():
            ids, rows = self._store.vectors_since(name, spaces[name].dim, self._vector_seq)
            if len(ids):
                field.put(ids, rows)
        gone_seq, gone = self._store.gone_since(self._gone_seq)
        if len(gone):
            for field in self._fields.values():
                field.drop(gone)
        views = {name: field.view() for name, field in self._fields.items()}
        self._view = View(self._earlier + state.version, state.generation, spaces, views)
        # Last: what Ctrl-C cuts short is taken in once more.
        self._vector_seq, self._gone_seq = max(self._vector_seq, self._store.newest_vector()), gone_seq


def check_spaces(folder: Path, stored: Mapping[str, Space], expected: Mapping[str, Space]) -> None:
    """Raise SpaceMismatch if a field that both know has another space in the memory."""
    for name, space in expected.items():
        have = stored.get(name, space)
        if have != space:
            raise SpaceMismatch(
                f"memory '{folder}'",
                expected=f"'{name}' vectors of encoder {space.id[:12]} with {space.dim} dimensions",
                got=f"those of encoder {have.id[:12]} with {have.dim}",
                do=f"run `edge-ravlm memory reembed {folder} --bundle BUNDLE`",
            )
