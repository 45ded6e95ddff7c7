"""Making, recognising and connecting to a memory's SQLite file."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from edge_ravlm.errors import MemoryFault, StorageError
from edge_ravlm.runtime.memory import words
from edge_ravlm.runtime.memory.faults import damaged, foreign

Mode = Literal["rw", "ro", "immutable"]

FILE = "memory.db"
_UNFINISHED = "new-memory.db"
SCHEMA_VERSION = 3
"""Since 2 checksums cover the id of the entry that they belong to; those of 1 are read, and stay as they are. Since 3
there is an index of the entries' words."""

APPLICATION_ID = 0x4552564D  # "ERVM"
BUSY_SECONDS = 30.0

# vectors.seq and gone.seq only ever grow: they are the change feed that other connections read from where
# they left off. AUTOINCREMENT on entries means an id is never reused, so an id that a caller kept cannot come
# to mean another entry.
_SCHEMA = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL,
    generation INTEGER NOT NULL, covered INTEGER NOT NULL) ;
INSERT INTO state VALUES (1, 1, 0, 0) ;
CREATE TABLE fields (name TEXT PRIMARY KEY, space TEXT NOT NULL, dim INTEGER NOT NULL) ;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL, answer TEXT, modality TEXT NOT NULL,
    time REAL NOT NULL, flavor TEXT NOT NULL, crc INTEGER NOT NULL) ;
CREATE INDEX entries_time ON entries (time) ;
CREATE INDEX entries_modality ON entries (modality) ;
CREATE TABLE thumbnails (entry_id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL) ;
CREATE TABLE tags (
    entry_id INTEGER NOT NULL, key TEXT NOT NULL, value NOT NULL, is_bool INTEGER NOT NULL,
    PRIMARY KEY (entry_id, key)) WITHOUT ROWID ;
CREATE INDEX tags_value ON tags (key, value) ;
CREATE TABLE vectors (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, field TEXT NOT NULL, entry_id INTEGER NOT NULL,
    vector BLOB NOT NULL, crc INTEGER NOT NULL) ;
CREATE UNIQUE INDEX vectors_entry ON vectors (entry_id, field) ;
CREATE TABLE gone (seq INTEGER PRIMARY KEY AUTOINCREMENT, entry_id INTEGER NOT NULL) ;
CREATE TABLE files (name TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT NOT NULL, stamp TEXT NOT NULL)
"""


def prepare(folder: Path, *, create: bool, writable: bool) -> Mode:
    """Make sure that folder holds a memory this version can use, creating it where allowed.

    Returns:
        how to connect.

    Raises:
        MemoryFault: no memory there, something else there, or one made by a newer version.
        StorageError: see ``reading_mode``.
    """
    create = create and writable
    if create and not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, create=create)
    if create and not (folder / FILE).exists():
        _create(folder)
    mode: Mode = "rw" if writable else reading_mode(folder)
    with closing(connect(folder, mode)) as connection:
        _check_version(folder, connection)
    return mode


def connect(folder: Path, mode: Mode) -> sqlite3.Connection:
    """A connection in autocommit mode; the caller closes it and guards it against concurrent use."""
    access = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    uri = f"file:{quote(str((folder / FILE).absolute()))}?{access}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def reading_mode(folder: Path) -> Mode:
    """How to connect for reading: "immutable" where the folder may not be written and nobody has the memory open.

    SQLite could not even keep its locks there. While another user or machine writes, his log and locks are there to
    be read; "immutable" would skip the log, and with it entries whose addition was acknowledged.

    Raises:
        StorageError: read-only storage that holds changes which only a writable open can fold in.
    """
    log = folder / f"{FILE}-wal"
    if os.access(folder, os.W_OK):
        return "ro"
    if not (log.exists() and log.stat().st_size):
        return "immutable"
    if (folder / f"{FILE}-shm").exists():
        return "ro"
    raise StorageError(
        f"memory '{folder}'",
        expected="a memory that was closed before its storage became read-only",
        got=f"changes still in {log.name}",
        do="open it once where it can be written",
    )


def looks(folder: Path) -> tuple[tuple[int, ...], ...]:
    """What changes when anybody writes to the memory: size, times, inode and device of its file and its log."""
    return tuple(_status(f"{folder}/{name}") for name in (FILE, f"{FILE}-wal"))


def identity(folder: Path) -> tuple[int, ...]:
    """Which file a memory's file is, whatever is in it; empty when there is none."""
    return _status(f"{folder}/{FILE}")[-2:]


def _status(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)  # noqa: PTH116 (asked before every search; a Path takes ten times as long)
    except FileNotFoundError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


@contextmanager
def folder_lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the folder's advisory lock, which serialises creating, compacting and sweeping among processes and
    threads.

    Yields:
        whether it was obtained; always True with wait.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)  # releases the lock


def sync_folder(folder: Path) -> None:
    """Make renames and new names in folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_TEACH = "check the path, or teach with `edge-ravlm memory add`"


def _check_folder(folder: Path, *, create: bool) -> None:
    if not folder.exists():
        raise MemoryFault(f"memory '{folder}'", expected="a memory", got="nothing there", do=_TEACH)
    if not folder.is_dir():
        raise foreign(folder, "a file")
    if (folder / FILE).exists():
        return
    if any(not path.name.startswith(_UNFINISHED) for path in folder.iterdir()):
        raise foreign(folder, f"a folder of other things, without {FILE}")
    if not create:
        raise MemoryFault(f"memory '{folder}'", expected="a memory", got="an empty folder", do=_TEACH)


def _create(folder: Path) -> None:
    # Made under another name and renamed when complete, so an empty memory.db is always damage, never a new
    # memory.
    with folder_lock(folder, wait=True):
        if (folder / FILE).exists():
            return
        for leftover in folder.glob(f"{_UNFINISHED}*"):
            leftover.unlink()
        with closing(sqlite3.connect(folder / _UNFINISHED, isolation_level=None)) as connection:
            _write_schema(connection)
        (folder / _UNFINISHED).rename(folder / FILE)
        sync_folder(folder)
        sync_folder(folder.absolute().parent)


def _write_schema(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    words.make(connection)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _check_version(folder: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) == (0, 0):
        raise damaged(folder, f"an empty {FILE}")
    if application != APPLICATION_ID:
        raise foreign(folder, f"a {FILE} that another program made")
    if version > SCHEMA_VERSION:
        raise MemoryFault(
            f"memory '{folder}'",
            expected=f"format {SCHEMA_VERSION} or older",
            got=f"format {version}",
            do="upgrade edge-ravlm to the version that made it",
        )
