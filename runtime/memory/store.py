"""The durable truth: entries, tags, thumbnails and vectors in SQLite."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_ravlm.errors import StorageError
from edge_ravlm.runtime.memory import words
from edge_ravlm.runtime.memory.database import FILE, SCHEMA_VERSION, Mode, connect, identity, looks
from edge_ravlm.runtime.memory.entries import Entry, Ids, NewEntry, Rows, Space, Tag, Where
from edge_ravlm.runtime.memory.faults import damaged, refused
from edge_ravlm.runtime.memory.filters import conditions, json_list

_log = logging.getLogger(__name__)

_SOME_IDS = "IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class State:
    """Where a memory stands.

    Attributes:
        version: grows with every change.
        generation: number of the current generation folder, 0 for none.
        covered: the generation holds what vectors.seq numbered up to here.
    """

    version: int
    generation: int
    covered: int


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file of the current generation as it was last verified in full; stamp "" means hash it before use."""

    name: str
    size: int
    sha256: str
    stamp: str


class Store:
    """One SQLite connection and everything said over it; not for concurrent use, its owner holds a lock."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        self._folder = folder
        self._blind_since = looks(folder) if mode == "immutable" else None
        self._db = connect(folder, mode)
        self._identity = identity(folder)
        self._warned = self._missed = False

    def close(self) -> None:
        """Close the connection; the last one to close folds SQLite's log into memory.db."""
        self._db.close()

    # -- transactions ---------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads inside see one moment of the database."""
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Writes inside happen together, durably, or not at all; the memory's version grows.

        Raises:
            StorageError: the file was deleted or replaced since, and what is written to it could never be read again.
        """
        if identity(self._folder) != self._identity:
            raise StorageError(
                f"memory '{self._folder}'",
                expected=f"the {FILE} that was opened",
                got="another one in its place" if identity(self._folder) else "none there any more",
                do="put it back, or open the memory again",
            )
        with self._transaction("BEGIN IMMEDIATE"):
            if self._number("PRAGMA user_version") < SCHEMA_VERSION:  # from here on it is of this format
                _log.info("memory '%s': becomes one of format %d", self._folder, SCHEMA_VERSION)
                words.make(self._db)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            yield
            self._db.execute("UPDATE state SET version = version + 1")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        try:
            self._db.execute(begin)  # inside: Ctrl-C may come right after a wait for the lock
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # -- reading --------------------------------------------------------------------------------------------

    def outdated(self) -> bool:
        """Whether another file took its place, or somebody has written since it was opened without locks and log."""
        if self._blind_since is None:
            there = identity(self._folder)
            if not there and not self._missed:
                _log.warning(
                    "memory '%s': %s is not there any more; what was in it is still served", self._folder, FILE
                )
            self._missed = not there
            return bool(there) and there != self._identity
        now = looks(self._folder)
        return now != self._blind_since or bool(now[1] and now[1][0])  # a log that it was opened without

    def same_file(self, other: Store) -> bool:
        """Whether both read the same file, whatever was written to it meanwhile."""
        return self._identity == other._identity

    def data_version(self) -> int:
        """A number that changes when another connection has written; microseconds."""
        return self._number("PRAGMA data_version")

    def state(self) -> State:
        """Version, generation and coverage."""
        rows = self._db.execute("SELECT version, generation, covered FROM state").fetchall()
        if len(rows) != 1:
            raise damaged(self._folder, f"{len(rows)} rows of state")
        return State(*rows[0])

    def spaces(self) -> dict[str, Space]:
        """The fields and the space of each."""
        rows = self._db.execute("SELECT name, space, dim FROM fields ORDER BY name")
        return {name: Space(space, dim) for name, space, dim in rows.fetchall()}

    def files(self) -> list[SealedFile]:
        """The files of the current generation."""
        return [SealedFile(*row) for row in self._db.execute("SELECT name, size, sha256, stamp FROM files")]

    def newest_id(self) -> int:
        """The highest entry id given out so far, removed or not."""
        return self._number("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'entries'), 0)")

    def newest_vector(self) -> int:
        """The highest vectors.seq."""
        return self._number("SELECT coalesce(max(seq), 0) FROM vectors")

    def ids(self, where: Where, above: int = 0) -> Ids:
        """Ascending ids greater than `above` that match, int64."""
        clause, values = conditions(where, above)
        rows = self._db.execute(f"SELECT e.id FROM entries e WHERE {clause} ORDER BY e.id", values)
        return np.fromiter((row[0] for row in rows), np.int64)

    def count(self, where: Where) -> int:
        """How many entries match."""
        if not where:
            return self._number("SELECT count(*) FROM entries")
        clause, values = conditions(where)
        return self._number(f"SELECT count(*) FROM entries e WHERE {clause}", values)

    def tag_values(self, name: str, limit: int) -> list[Tag]:
        """Some of the different values of a tag, ascending; truth values as 0 and 1."""
        rows = self._db.execute("SELECT DISTINCT value FROM tags WHERE key = ? ORDER BY value LIMIT ?", (name, limit))
        return [row[0] for row in rows]

    def said(self, where: Where) -> set[str]:
        """What matching entries answer, or say where they have no answer; unchecked."""
        clause, values = conditions(where)
        said = "SELECT DISTINCT coalesce(nullif(e.answer, ''), e.text)"
        return {row[0] for row in self._db.execute(f"{said} FROM entries e WHERE {clause}", values)}

    def entries(self, ids: Sequence[int]) -> dict[int, Entry]:
        """Those of ids that exist; raises MemoryDamaged if one is not what was added."""
        wanted = [json_list(list(ids))]
        tags: dict[int, dict[str, Tag]] = {}
        for id_, key, value, is_bool in self._db.execute(
            f"SELECT entry_id, key, value, is_bool FROM tags WHERE entry_id {_SOME_IDS}", wanted
        ):
            tags.setdefault(id_, {})[key] = bool(value) if is_bool else value
        rows = self._db.execute(
            "SELECT id, text, answer, modality, time, flavor, jpeg, crc FROM entries LEFT JOIN thumbnails"
            f" ON id = entry_id WHERE id {_SOME_IDS}",
            wanted,
        )
        return {row[0]: self._entry(row, tags.get(row[0], {})) for row in rows.fetchall()}

    def texts(self, ids: Sequence[int]) -> dict[int, str]:
        """What those of ids say that exist; unchecked."""
        rows = self._db.execute(f"SELECT id, text FROM entries WHERE id {_SOME_IDS}", [json_list(list(ids))])
        return dict(rows.fetchall())

    def vectors_since(self, field: str, dim: int, seq: int) -> tuple[Ids, Rows]:
        """Ids and rows of a field that were put after `seq`, in that order."""
        found = self._db.execute(
            "SELECT entry_id, vector, crc FROM vectors WHERE seq > ? AND field = ? ORDER BY seq", (seq, field)
        )
        return self._rows(found.fetchall(), dim)

    def vector_ids_since(self, field: str, seq: int) -> Ids:
        """Ascending ids of a field whose vectors were put after `seq`."""
        found = self._db.execute("SELECT entry_id FROM vectors WHERE seq > ? AND field = ?", (seq, field))
        return np.sort(np.fromiter((row[0] for row in found), np.int64))

    def vector_count(self, field: str) -> int:
        """How many entries carry this field."""
        return self._number("SELECT count(*) FROM vectors WHERE field = ?", [field])

    def all_vectors(self, field: str, dim: int, batch: int) -> Iterator[tuple[Ids, Rows]]:
        """Every vector of a field by ascending id, `batch` at a time."""
        found = self._db.execute(
            "SELECT entry_id, vector, crc FROM vectors WHERE field = ? ORDER BY entry_id", (field,)
        )
        while rows := found.fetchmany(batch):
            yield self._rows(rows, dim)

    def gone_since(self, seq: int) -> tuple[int, Ids]:
        """Entries removed after `seq` and not yet folded into a generation; also the newest such seq."""
        rows = self._db.execute("SELECT seq, entry_id FROM gone WHERE seq > ?", (seq,)).fetchall()
        return max((row[0] for row in rows), default=seq), np.array([row[1] for row in rows], np.int64)

    def saying(self, word: str, most: int) -> Ids:
        """Ascending ids of entries that say a word, at most so many, int64; none where there is no index of words."""
        found = list[int]()
        try:
            if words.made(self._db):
                found = words.having(self._db, word, most)
        except sqlite3.DatabaseError as error:
            if refused(error):
                raise
            if not self._warned:
                _log.warning(
                    "memory '%s': the index of words is damaged; `edge-ravlm memory verify` makes it anew", self._folder
                )
            self._warned = True
        return np.array(found, np.int64)

    def complaints(self) -> list[str]:
        """What SQLite's own integrity check finds wrong; empty when sound."""
        found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check(10)")]
        return [] if found == ["ok"] else found

    # -- writing, each inside writing() ---------------------------------------------------------------------

    def add_field(self, name: str, space: Space) -> None:
        """A field that entries may carry from now on; one that exists gets this space."""
        self._db.execute("INSERT OR REPLACE INTO fields VALUES (?, ?, ?)", (name, space.id, space.dim))

    def insert(self, entries: Sequence[NewEntry]) -> list[int]:
        """Add entries without their vectors; returns their ids, ascending."""
        first = self.newest_id() + 1
        numbered = list(enumerate(entries, first))
        self._db.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((i, e.text, e.answer, e.modality, float(e.time), e.flavor, _of(i, _entry_crc(e))) for i, e in numbered),
        )
        self._db.executemany(
            "INSERT INTO thumbnails VALUES (?, ?)",
            ((i, e.thumbnail) for i, e in numbered if e.thumbnail is not None),
        )
        self._db.executemany(
            "INSERT INTO tags VALUES (?, ?, ?, ?)",
            ((i, key, value, isinstance(value, bool)) for i, e in numbered for key, value in e.tags.items()),
        )
        words.put(self._db, numbered)
        return [i for i, _ in numbered]

    def put_vectors(self, field: str, ids: Sequence[int], rows: Rows) -> None:
        """Give entries a field's vectors (float16 [n, D]), replacing those they have."""
        blobs = (row.tobytes() for row in rows)
        self._db.executemany(
            "INSERT OR REPLACE INTO vectors (field, entry_id, vector, crc) VALUES (?, ?, ?, ?)",
            ((field, id_, blob, _of(id_, zlib.crc32(blob))) for id_, blob in zip(ids, blobs, strict=True)),
        )

    def set_flavor(self, ids: Sequence[int], flavor: str) -> None:
        """Note which flavour embedded these entries."""
        changed = (replace(entry, flavor=flavor) for entry in self.entries(ids).values())
        rows = ((flavor, _of(entry.id, _entry_crc(entry)), entry.id) for entry in changed)
        self._db.executemany("UPDATE entries SET flavor = ?, crc = ? WHERE id = ?", rows)

    def delete(self, ids: Sequence[int]) -> int:
        """Remove entries and everything of theirs; returns how many there were."""
        wanted = [json_list(list(ids))]
        self._db.execute(f"INSERT INTO gone (entry_id) SELECT id FROM entries WHERE id {_SOME_IDS}", wanted)
        words.drop(self._db, ids)
        for table in ("vectors", "tags", "thumbnails"):
            self._db.execute(f"DELETE FROM {table} WHERE entry_id {_SOME_IDS}", wanted)
        return self._db.execute(f"DELETE FROM entries WHERE id {_SOME_IDS}", wanted).rowcount

    def drop_field_vectors(self, field: str) -> None:
        """Remove all vectors of a field, and with them the generation that holds them."""
        self._db.execute("DELETE FROM vectors WHERE field = ?", (field,))
        self.set_generation(self.state().generation + 1, covered=0, gone=0, files=[])

    def set_generation(self, number: int, *, covered: int, gone: int, files: Sequence[SealedFile]) -> None:
        """Switch to a generation that covers vectors and removals up to these seqs."""
        self._db.execute("UPDATE state SET generation = ?, covered = ?", (number, covered))
        self._db.execute("DELETE FROM gone WHERE seq <= ?", (gone,))
        self._db.execute("DELETE FROM files")
        rows = ((file.name, file.size, file.sha256, file.stamp) for file in files)
        self._db.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)

    def mend_words(self) -> bool:
        """Make the index of words anew where it does not hold what the entries say; whether that was so."""
        with self._transaction("BEGIN IMMEDIATE"):
            if self._number("PRAGMA user_version") < SCHEMA_VERSION:  # has none until it is written to
                return False
            if words.made(self._db) and words.sound(self._db):
                return False
        with self._transaction("BEGIN IMMEDIATE"):
            words.make(self._db)
        return True

    def stamp(self, generation: int, stamps: Mapping[str, str]) -> None:
        """Note how files of a generation looked when last verified; changes no answer, so not the version."""
        with self._transaction("BEGIN IMMEDIATE"):
            if self.state().generation == generation:
                self._db.executemany(
                    "UPDATE files SET stamp = ? WHERE name = ?", ((s, name) for name, s in stamps.items())
                )

    # -- decoding -------------------------------------------------------------------------------------------

    def _number(self, sql: str, values: Sequence[object] = ()) -> int:
        return int(self._db.execute(sql, values).fetchone()[0])

    def _entry(self, row: tuple[object, ...], tags: dict[str, Tag]) -> Entry:
        id_, text, answer, modality, time, flavor, thumbnail, crc = row
        entry = Entry(id_, text, answer, tags, modality, time, flavor, thumbnail)  # type: ignore[arg-type]  # SQLite's
        try:
            intact = _is_sum(crc, id_, _entry_crc(entry))
        except (TypeError, ValueError):  # a value of another type than was written
            intact = False
        if not intact:
            raise damaged(self._folder, f"entry {id_} altered")
        return entry

    def _rows(self, found: list[tuple[int, bytes, int]], dim: int) -> tuple[Ids, Rows]:
        for id_, blob, crc in found:
            if not isinstance(blob, bytes) or len(blob) != 2 * dim or not _is_sum(crc, id_, zlib.crc32(blob)):
                raise damaged(self._folder, f"the vector of entry {id_} altered")
        rows = np.frombuffer(b"".join(row[1] for row in found), np.float16)
        return np.array([row[0] for row in found], np.int64), rows.reshape(len(found), dim)


def _of(id_: int, crc: int) -> int:
    """The checksum of what belongs to an entry: with another id it is another."""
    return zlib.crc32(int(id_).to_bytes(8, "little"), crc)


def _is_sum(stored: object, id_: object, crc: int) -> bool:
    # Without the id: what was written in format 1.
    return stored in (_of(id_, crc), crc) if isinstance(id_, int) and id_ > 0 else False


def _entry_crc(entry: NewEntry | Entry) -> int:
    # Plus 0.0: SQLite keeps no sign of a zero.
    tags = [(key, v + 0.0 if isinstance(v, float) else v) for key, v in sorted(entry.tags.items())]
    said = [entry.text, entry.answer, entry.modality, entry.flavor, float(entry.time) + 0.0, tags]
    return zlib.crc32(entry.thumbnail or b"", zlib.crc32(json.dumps(said).encode()))
