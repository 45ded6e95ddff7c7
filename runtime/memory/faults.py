"""What SQLite and the disk complain about, in the words of our error tree."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_ravlm.errors import MemoryDamaged, MemoryFault, StorageError

_REFUSALS = {
    "disk is full": ("free space on the disk", "none", "free some space and repeat the call"),
    "readonly": ("a memory that can be written", "read-only storage", "open it with read_only=True"),
    "unable to open": (
        "a memory that can be opened",
        "a refusal by the disk",
        "check the folder and its permissions",
    ),
    "disk i/o error": ("a working disk", "an input/output error", "check the disk and repeat the call"),
    "locked": (
        "a turn to write within 30 s",
        "another process that kept writing",
        "repeat the call when it is done",
    ),
    "no such module": (
        "an SQLite with full-text search (FTS5)",
        "one without",
        "use another Python, for instance your distribution's",
    ),
    "out of memory": ("enough main memory", "none left", "close other programs and repeat the call"),
}


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Turn sqlite3.Error and OSError raised inside into StorageError or MemoryDamaged.

    A refusal by the storage never costs acknowledged entries: the transaction it hit was rolled back as a
    whole.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(folder, error) from error
    except OSError as error:
        raise storage_refused(folder, error) from error


def refused(error: sqlite3.Error) -> bool:
    """Whether the storage, a lock or this SQLite said no; else something is not as it was written."""
    return any(sign in str(error).lower() for sign in _REFUSALS)


def storage_refused(folder: Path, error: OSError) -> StorageError:
    """The StorageError for an OSError met in this memory's folder."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StorageError(
        f"memory '{folder}'",
        expected="storage that can be read and written",
        got=reason,
        do="free space or fix the permissions; what was added before is intact",
    )


def damaged(folder: Path, got: str) -> MemoryDamaged:
    """The MemoryDamaged for bytes in memory.db that cannot be what was written."""
    return MemoryDamaged(
        f"memory '{folder}'",
        expected="memory.db as it was written",
        got=got,
        do="restore memory.db from a backup, or move the folder away and start a new memory",
    )


def foreign(folder: Path, got: str) -> MemoryFault:
    """The MemoryFault for a path that holds something else."""
    return MemoryFault(f"memory '{folder}'", expected="a memory folder or a new path", got=got, do="give another path")


def _translated(folder: Path, error: sqlite3.Error) -> StorageError | MemoryDamaged:
    text = str(error).lower()
    for sign, (expected, got, do) in _REFUSALS.items():
        if sign in text:
            return StorageError(f"memory '{folder}'", expected=expected, got=got, do=do)
    return damaged(folder, f"a database that reports '{error}'")
