"""A memory: what it has seen and been told, kept in a folder and searched by vector."""

from __future__ import annotations

import logging
import math
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_ravlm.errors import MemoryDamaged, MemoryFault, UsageError
from edge_ravlm.runtime.memory import generations
from edge_ravlm.runtime.memory.compaction import Compactor, Progress
from edge_ravlm.runtime.memory.database import FILE, Mode, folder_lock, prepare, reading_mode
from edge_ravlm.runtime.memory.entries import (
    Entry,
    Hit,
    NewEntry,
    Rows,
    Space,
    Tag,
    Where,
    check_field_name,
    unit,
    whole,
)
from edge_ravlm.runtime.memory.faults import reported
from edge_ravlm.runtime.memory.live import Live, check_spaces
from edge_ravlm.runtime.memory.ranking import found_in
from edge_ravlm.runtime.memory.stats import FieldStats, Stats, bytes_in
from edge_ravlm.runtime.memory.store import Store
from edge_ravlm.runtime.memory.verification import examine
from edge_ravlm.runtime.memory.words import rarities, words_of

_log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE = 256
"""Entries read at a time while iterating."""

_NEAR = 128
"""Nearest entries that are compared by their words too, beside those that share rare ones."""

_SAID = 32
"""At most so many times as many entries may say a rare word in a memory that only a part of is asked about."""

_LOOKED_UP = 64
"""Words of a text that are looked up, as each takes time: a page has hundreds."""


class Memory:
    """Entries with vectors in a folder: durable when added, searchable at once, shared among processes.

    Use ``Memory.open``; close it, or use it in a ``with`` statement. Every method may be called from any
    thread and raises MemoryDamaged if memory.db is not what was written, StorageError if the disk refuses,
    SpaceMismatch if another process re-embedded a field this memory was opened for, and UsageError once it is
    closed.
    """

    def __init__(self, folder: Path, mode: Mode, spaces: Mapping[str, Space], auto_compact: bool) -> None:
        self._folder = folder
        self._live = Live(folder, mode, spaces)
        self._write_lock = threading.Lock()
        self._store = Store(folder, mode) if mode == "rw" else None
        self._compactor = Compactor(folder, self._live, self._store, self._write_lock, auto_compact)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        spaces: Mapping[str, Space] = MappingProxyType({}),
        *,
        create: bool = True,
        read_only: bool = False,
        auto_compact: bool = True,
    ) -> Memory:
        """Open a memory, creating it if there is nothing at path (or an empty folder).

        Args:
            path: the folder.
            spaces: field name to the space of the vectors that will be added and searched; fields the memory
                lacks are added to it. Fields left out stay usable, so an existing memory can be opened
                without naming any.
            create: whether a new memory may be made.
            read_only: never write; works on read-only storage and in folders of other users, too.
            auto_compact: let ``add`` and ``remove`` start a compaction in the background when the tail has
                grown.

        Raises:
            MemoryFault: nothing there and create is false, something else there, or made by a newer version.
            MemoryDamaged: memory.db is not what was written.
            SpaceMismatch: a field was made with another encoder.
            StorageError: the disk refuses.
        """
        folder = Path(path)
        for name in spaces:
            check_field_name(name)
        with reported(folder):
            mode = prepare(folder, create=create, writable=not read_only)
            memory = cls(folder, mode, spaces, auto_compact)
        try:
            memory._start(spaces)
        except BaseException:
            memory.close()
            raise
        return memory

    def close(self) -> None:
        """Wait for a background compaction, then close; harmless when closed already."""
        self._compactor.join()
        with self._write_lock:
            self._live.close()
            if self._store is not None:
                self._store.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading alone."""
        return self._store is None

    def check_open(self) -> None:
        """Raise UsageError when it was closed, or opened by the process that this one was forked from."""
        self._live.check_open()

    # -- what it holds --------------------------------------------------------------------------------------

    @property
    def spaces(self) -> Mapping[str, Space]:
        """Each field's space."""
        return self._live.view().spaces

    @property
    def version(self) -> int:
        """Grows whenever any answer could change, whichever process changed it."""
        return self._live.view().version

    def __len__(self) -> int:
        return self.count()

    def count(self, where: Where | None = None) -> int:
        """How many entries match; all without a filter."""
        with self._live.reading() as store:
            return store.count(where or Where())

    def tag_values(self, name: str, limit: int = 100) -> list[Tag]:
        """The different values that a tag has, ascending, at most so many; truth values come as 0 and 1."""
        with self._live.reading() as store:
            return store.tag_values(name, limit)

    def said(self, where: Where | None = None) -> set[str]:
        """The different answers of matching entries, their texts where they have none; without reading pictures."""
        with self._live.reading() as store:
            return store.said(where or Where())

    def get(self, ids: Sequence[int]) -> list[Entry]:
        """Entries in the order of ids; raises MemoryFault naming the first id that does not exist."""
        wanted = whole(ids)
        with self._live.reading() as store:
            found = store.entries(wanted)
        for id_ in wanted:
            if id_ not in found:
                raise self._no_such(f"entry {id_}")
        return [found[id_] for id_ in wanted]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """What entries say, in the order of ids, without reading pictures; nothing of those that do not exist."""
        with self._live.reading() as store:
            found = store.texts(ids)
        return [found.get(id_, "") for id_ in ids]

    def entries(self, where: Where | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Matching entries by ascending id, or by descending; those removed while iterating are left out."""
        with self._live.reading() as store:
            ids = store.ids(where or Where()).tolist()
        ids = ids[::-1] if newest_first else ids
        for start in range(0, len(ids), _PAGE):
            with self._live.reading() as store:
                found = store.entries(ids[start : start + _PAGE])
            yield from (found[id_] for id_ in sorted(found, reverse=newest_first))

    def vectors(self, field: str, ids: Sequence[int]) -> NDArray[np.float32]:
        """The stored vectors in the order of ids, float32 [n, D], unit length up to float16 rounding.

        Raises:
            MemoryFault: an id that does not exist or carries no such field.
        """
        wanted = whole(ids)
        known = np.array([id_ if 0 < id_ < 2**63 else 0 for id_ in wanted], np.int64)
        rows, present = self._live.view().field(field)[1].rows(known)
        if not present.all():
            raise self._no_such(f"the '{field}' vector of entry {wanted[int(np.argmin(present))]}")
        return rows

    def search(self, field: str, query: ArrayLike, k: int, where: Where | None = None, *, words: str = "") -> list[Hit]:
        """The k entries whose `field` vectors are nearest to query by cosine, best first, equal scores by id.

        Above SCAN_ROWS candidates the nearest are found through graphs (recall@10 measured on clusters: 0.998 among
        100,000, 0.997 among a million), otherwise exactly. A filter never lets another entry through and never costs a
        match: there are min(k, matches) hits.

        Args:
            field: which vectors to compare with.
            query: float32 [D], any length above zero.
            k: how many hits, 1 or more; more than there are is fine.
            where: only entries that match.
            words: a text of which rare words are looked for as well, for names and codes: what entries repeat of it is
                added to their cosines, and decides with them.
        """
        if operator.index(k) < 1:
            raise UsageError("k", expected="1 or more", got=str(k), do="ask for at least one hit")
        if words:
            return self._search_with(words, field, query, operator.index(k), where)
        view, matches = self._live.matching(where)
        space, rows = view.field(field)
        ids, scores = rows.search(unit(field, query, space), operator.index(k), matches)
        clipped = scores.clip(-1.0, 1.0).tolist()
        return [Hit(id_, score) for id_, score in zip(ids.tolist(), clipped, strict=True)]

    def saying(self, text: str, where: Where | None = None, most: int = 128) -> list[int]:
        """Entries that share a rare word with a text, ascending: names, codes and numbers, which vectors hardly tell.

        Args:
            text: any text; case does not matter. Of a long one numbers, codes and long words are looked for.
            where: only entries that match.
            most: a word that more of them say is not rare.
        """
        _, matches = self._live.matching(where)
        found: set[int] = set()
        wanted = sorted(words_of(text), key=lambda word: (word.isalpha(), -len(word)))[:_LOOKED_UP]
        with self._live.reading() as store:
            limit = most
            if matches is not None:  # twice what as many in each part of the memory come to
                limit *= min(_SAID, math.ceil(2 * store.newest_id() / max(1, len(matches))))
            said = [store.saying(word, limit + 1) for word in wanted]
        for ids in said:
            there = ids if matches is None else ids[found_in(matches, ids)[1]]
            if len(ids) <= limit and len(there) <= most:
                found.update(there.tolist())
        return sorted(found)

    def stats(self) -> Stats:
        """The memory in numbers."""
        view = self._live.view()
        fields = {
            name: FieldStats(view.spaces[name].id, view.spaces[name].dim, field.count, field.tail_count)
            for name, field in view.fields.items()
        }
        with reported(self._folder):
            size = bytes_in(self._folder)
        tail = max((field.tail for field in fields.values()), default=0)
        return Stats(self.count(), tail, view.generation, size, fields)

    # -- changing it ----------------------------------------------------------------------------------------

    def add(self, entries: Iterable[NewEntry]) -> list[int]:
        """Remember entries: all of them, on the disk, before this returns their ids; or none.

        Raises:
            UsageError: an entry without vectors, with an unknown field, or with a vector that is not finite
                numbers.
        """
        spaces, entries = self.spaces, list(entries)
        rows = [_rows_of(entry, spaces) for entry in entries]

        def put(store: Store) -> list[int]:
            check_spaces(self._folder, store.spaces(), spaces)  # another process may have re-embedded just now
            ids = store.insert(entries)
            for name in spaces:
                chosen = [i for i, row in enumerate(rows) if name in row]
                store.put_vectors(name, [ids[i] for i in chosen], _stacked([rows[i][name] for i in chosen]))
            return ids

        ids = self._written(put)
        self._compactor.run_if_due()
        return ids

    def remove(self, ids: Iterable[int] | int) -> int:
        """Forget entries, or one, durably and at once; returns how many of ids there were."""
        wanted = whole([ids] if isinstance(ids, int | np.integer) else ids)
        removed = self._written(lambda store: store.delete(wanted))
        self._compactor.run_if_due()
        return removed

    def reembed(self, field: str, space: Space, ids: Sequence[int], vectors: ArrayLike, flavor: str) -> None:
        """Replace a field's vectors by those of another quantization flavour or another encoder.

        If space is not the field's present one, the vectors of entries that are not in ids are dropped, as
        nothing could be compared with them; compact afterwards.

        Args:
            field: the field; new ones are made.
            space: what the new vectors are.
            ids: entries that exist.
            vectors: float32 [n, D].
            flavor: noted in the entries.

        Raises:
            MemoryFault: an id that does not exist.
        """
        check_field_name(field)
        wanted = whole(ids)
        rows = _stacked([unit(field, row, space) for row in np.asarray(vectors)])
        with self._writing() as store:
            missing = set(wanted) - set(store.ids(Where(ids=frozenset(wanted))).tolist())
            if missing:
                raise self._no_such(f"entry {min(missing)}")
            if store.spaces().get(field) != space:
                store.drop_field_vectors(field)
                store.add_field(field, space)
            store.put_vectors(field, wanted, rows)
            store.set_flavor(wanted, flavor)
        self._live.expect(field, space)

    def compact(self, progress: Progress | None = None) -> None:
        """Fold the tail into a new generation; searches and additions go on meanwhile.

        A crash at any moment leaves the old generation or the new one.

        Args:
            progress: told (vectors done, vectors in all).
        """
        self._writer()
        self._compactor.run(progress)

    def verify(self) -> list[str]:
        """Check everything in full: one sentence per problem, naming the file; none if the memory is sound.

        Damaged generation files are no longer served afterwards; the next compaction makes them again. The index of
        words is made anew at once where it disagrees with the entries; opened read-only it is not looked at.

        Raises:
            MemoryDamaged: memory.db cannot even be read.
        """
        with reported(self._folder):
            mode: Mode = "rw" if self._store is not None else reading_mode(self._folder)
            found = examine(self._folder, mode)
        if self._store is not None:
            with self._write_lock:
                found.problems.extend(self._mended(self._store))
        if found.files:
            if self._store is not None:
                with self._write_lock, reported(self._folder):
                    self._store.stamp(found.generation, dict.fromkeys(found.files, ""))
            self._live.reload(found.files)
        return found.problems

    # -- inside ---------------------------------------------------------------------------------------------

    def _search_with(self, words: str, field: str, query: ArrayLike, k: int, where: Where | None) -> list[Hit]:
        hits = self.search(field, query, max(k, _NEAR), where)
        more = frozenset(self.saying(words, where)).difference(hit.id for hit in hits)
        if more:
            hits += self.search(field, query, len(more), Where(ids=more))
        with self._live.reading() as store:
            texts = store.texts([hit.id for hit in hits])
        hits = [hit for hit in hits if hit.id in texts]  # another process may have removed one just now
        shares = rarities(words, [texts[hit.id] for hit in hits])
        found = [Hit(hit.id, hit.score, shared) for hit, shared in zip(hits, shares, strict=True)]
        return sorted(found, key=lambda hit: (-hit.score - hit.shared, hit.id))[:k]

    def _mended(self, store: Store) -> list[str]:
        """What was wrong with the index of words, which is made anew."""
        try:
            with reported(self._folder):
                anew = store.mend_words()
        except MemoryDamaged as damage:  # what was found before is told nevertheless
            return [f"{FILE}: the index of words cannot be made anew: {damage.got}"]
        return [f"{FILE}: the index of words disagreed with the entries; it was made anew"] if anew else []

    def _start(self, spaces: Mapping[str, Space]) -> None:
        if self._store is not None:
            with reported(self._folder):
                self._add_fields(self._store, spaces)
                self._sweep()
        generation, stamps = self._live.reload()
        if self._store is not None:
            if stamps:
                with reported(self._folder):
                    self._store.stamp(generation, stamps)
            self._compactor.run_if_due()

    def _add_fields(self, store: Store, spaces: Mapping[str, Space]) -> None:
        stored = store.spaces()
        check_spaces(self._folder, stored, spaces)
        if set(spaces) - set(stored):
            with store.writing():
                for name in set(spaces) - set(store.spaces()):
                    store.add_field(name, spaces[name])

    def _sweep(self) -> None:
        with folder_lock(self._folder, wait=False) as held:
            if held and self._store is not None:
                generations.sweep(self._folder, self._store.state().generation)

    def _writer(self) -> Store:
        if self._store is None:
            raise UsageError(
                f"memory '{self._folder}'",
                expected="a memory opened for writing",
                got="read_only=True",
                do="open it without read_only",
            )
        return self._store

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        store = self._writer()
        self._live.view()  # refuses when closed, or when another process changed a space
        with self._write_lock, reported(self._folder), store.writing():
            yield store

    def _written(self, change: Callable[[Store], T]) -> T:
        """Make a change. A damaged index of words, which would keep it from happening, is made anew first."""
        try:
            with self._writing() as store:
                return change(store)
        except MemoryDamaged:
            with self._write_lock, reported(self._folder):
                if not self._writer().mend_words():
                    raise
        _log.warning("memory '%s': the index of words was damaged; it was made anew", self._folder)
        with self._writing() as store:
            return change(store)

    def _no_such(self, what: str) -> MemoryFault:
        return MemoryFault(
            f"memory '{self._folder}'",
            expected=what,
            got="none",
            do="search or list the memory for the ids it holds",
        )


def _rows_of(entry: NewEntry, spaces: Mapping[str, Space]) -> dict[str, NDArray[np.float32]]:
    unknown = sorted(set(entry.vectors) - set(spaces))
    if unknown or not entry.vectors:
        raise UsageError(
            f"entry '{entry.text[:40]}'",
            expected=f"vectors for {' or '.join(spaces) or 'a field of this memory (it has none)'}",
            got=", ".join(unknown) or "no vectors",
            do="name the fields as the memory was opened with them",
        )
    return {name: unit(name, vector, spaces[name]) for name, vector in entry.vectors.items()}


def _stacked(rows: Sequence[NDArray[np.float32]]) -> Rows:
    return np.array(rows, np.float16)
