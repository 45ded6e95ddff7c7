"""The disk refuses: one sentence, nothing lost, nothing half-written.

chmod does not bind root, so refusals are injected.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from usearch.index import Index

from edge_ravlm.errors import StorageError, UsageError
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, compaction, database, generations, index
from edge_ravlm.runtime.memory.field import Field

Make = Callable[..., list[NewEntry]]


def _refuse(code: int) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


def test_a_full_disk_refuses_an_add_and_keeps_the_rest(memory: Memory, entries: Make) -> None:
    ids = memory.add(entries(10))
    assert memory._store is not None
    pages = memory._store._db.execute("PRAGMA page_count").fetchone()[0]
    memory._store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageError, match="free space"):
        memory.add(entries(500, thumbnail=b"x" * 5000))
    assert [entry.id for entry in memory.entries()] == ids
    assert len(memory.search("image", np.ones(16), 99)) == 10
    memory._store._db.execute(f"PRAGMA max_page_count={pages + 100_000}")
    assert memory.add(entries(1)) == [11]
    assert memory.verify() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Path, "mkdir"),
        (os, "fsync"),
        (generations, "sync_folder"),
        (Path, "rename"),
        (index._Growing, "save"),
    ],
)
@pytest.mark.usefixtures("graphs")
def test_a_refused_compaction_changes_nothing(
    memory: Memory,
    folder: Path,
    entries: Make,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    code: int,
) -> None:
    given = entries(60)
    memory.add(given[:50])
    memory.compact()
    memory.add(given[50:])
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, _refuse(code))
        with pytest.raises(StorageError, match="what was added before is intact"):
            memory.compact()
    assert memory.stats().generation == 1
    assert len(memory.search("image", np.ones(16), 99)) == 60
    memory.compact()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["generation-000002"]
    assert memory.verify() == []


def test_usearchs_own_write_errors_are_storage_errors(
    memory: Memory, entries: Make, monkeypatch: pytest.MonkeyPatch, graphs: None
) -> None:
    memory.add(entries(50))

    def refuse(self: Any, path: str) -> None:
        raise RuntimeError("Failed to serialize into stream")

    with monkeypatch.context() as patched:
        patched.setattr(Index, "save", refuse)
        with pytest.raises(StorageError, match="serialize"):
            memory.compact()
        patched.setattr(Index, "save", lambda self, path: Path(path).write_bytes(b"short"))
        with pytest.raises(StorageError, match="cut short"):
            memory.compact()
    memory.compact()


def test_a_refused_background_compaction_is_put_off(
    folder: Path,
    spaces: dict[str, Space],
    entries: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compaction, "TAIL_ROWS", 10)
    tried: list[int] = []
    monkeypatch.setattr(compaction, "build", lambda *a: tried.append(1) or _refuse(errno.ENOSPC)())
    with Memory.open(folder, spaces) as memory:
        for seed in range(4):
            memory.add(entries(11, seed=seed))
            thread = memory._compactor._thread
            assert thread is not None
            thread.join()
        assert len(tried) == 2, "at 11 rows, then not before there are more than twice as many"
        assert len(memory.search("image", np.ones(16), 99)) == 44
    assert "put off" in caplog.text


def test_a_path_that_cannot_be_made_is_a_storage_error(
    tmp_path: Path, spaces: dict[str, Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", _refuse(errno.EROFS))
    with pytest.raises(StorageError, match="Read-only file system"):
        Memory.open(tmp_path / "new", spaces)


def test_read_only_reads_and_never_writes(folder: Path, spaces: dict[str, Space], entries: Make) -> None:
    with Memory.open(folder, spaces) as memory:
        ids = memory.add(entries(20))
        memory.compact()
    with Memory.open(folder, spaces, read_only=True) as memory:
        assert len(memory.search("image", np.ones(16), 99)) == 20
        for call in (lambda: memory.add(entries(1)), lambda: memory.remove(ids), memory.compact):
            with pytest.raises(UsageError, match="read_only"):
                call()
        assert memory.verify() == []


def test_read_only_storage_is_opened_without_locks(
    folder: Path, spaces: dict[str, Space], entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Memory.open(folder, spaces) as memory:
        memory.add(entries(20))
    before = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    with Memory.open(folder, spaces, read_only=True) as memory:
        assert len(memory.search("image", np.ones(16), 99)) == len(memory) == 20
        assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    log = folder / "memory.db-wal"
    log.write_bytes(b"copied without the other files")
    with pytest.raises(StorageError, match=r"memory\.db-wal"):
        Memory.open(folder, spaces, read_only=True)


def test_a_reader_who_may_not_write_the_folder_sees_what_others_write(
    folder: Path, spaces: dict[str, Space], entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Memory.open(folder, spaces) as memory:
        memory.add(entries(20))
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    with Memory.open(folder, spaces, read_only=True) as early:
        assert len(early) == 20
        with Memory.open(folder, spaces, auto_compact=False) as memory:
            ids = memory.add(entries(50))
            with Memory.open(folder, spaces, read_only=True) as late:
                assert len(late) == len(early) == 70
                memory.remove(ids[:10])
                assert len(late) == len(list(early.entries())) == 60
            memory.compact()
        assert len(early.search("image", np.ones(16), 99)) == 60
        assert early.verify() == []


def test_a_reader_who_may_not_write_the_folder_reads_a_file_that_took_the_others_place(
    folder: Path, spaces: dict[str, Space], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when a memory is copied to a device again: ids of the one are not those of the other."""
    one, other = np.eye(2, 16, dtype=np.float32)
    for place, order in ((folder, (one, other)), (tmp_path / "new", (other, one))):
        with Memory.open(place, spaces, auto_compact=False) as memory:
            memory.add([NewEntry("one" if vector is one else "other", vectors={"image": vector}) for vector in order])
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    with Memory.open(folder, spaces, read_only=True) as reader:
        versions = []
        for _ in range(2):
            versions.append(reader.version)  # what was answered before must not be taken for known
            (hit,) = reader.search("image", one, 1)
            assert reader.get([hit.id])[0].text == "one"
            if (tmp_path / "new" / "memory.db").exists():
                (tmp_path / "new" / "memory.db").replace(folder / "memory.db")
        assert versions[0] < versions[1]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_memory_that_took_the_others_place_is_read_from_then_on(
    folder: Path, spaces: dict[str, Space], tmp_path: Path, read_only: bool
) -> None:
    """As when a backup is put back beneath a running program; while there is nothing, what was there is served."""
    for place, text in ((folder, "before"), (tmp_path / "new", "after")):
        with Memory.open(place, spaces) as memory:
            memory.add([NewEntry(text, vectors={"image": np.ones(16)})])
    with Memory.open(folder, spaces, read_only=read_only) as reader:
        version = reader.version
        shutil.rmtree(folder)
        assert reader.get([1])[0].text == "before"
        assert reader.version == version
        (tmp_path / "new").rename(folder)
        assert reader.get([1])[0].text == "after"
        assert reader.version > version
        assert len(reader.search("image", np.ones(16), 9)) == 1
    with Memory.open(folder, spaces) as memory:
        assert memory.verify() == []
        assert len(memory) == 1


@pytest.mark.parametrize("put_back", [False, True])
def test_nothing_is_added_to_a_memory_whose_folder_was_deleted(
    memory: Memory, folder: Path, spaces: dict[str, Space], entries: Make, put_back: bool
) -> None:
    memory.add(entries(3))
    shutil.rmtree(folder)
    if put_back:
        Memory.open(folder, spaces).close()
    for write in (lambda: memory.add(entries(1)), lambda: memory.remove([1])):
        with pytest.raises(StorageError, match=r"expected the memory\.db that was opened.*open the memory again"):
            write()


def test_a_writer_that_never_ends_is_named(
    memory: Memory, folder: Path, spaces: dict[str, Space], entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with Memory.open(folder, spaces, auto_compact=False) as other:
        assert memory._store is not None
        with memory._store.writing(), pytest.raises(StorageError, match="another process"):
            other.add(entries(1))
        assert other.add(entries(1)) == [1]


class _Interrupted:
    """A connection in whose first statement Ctrl-C is pressed: Python notices when SQLite is done with it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self._pressed = database, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        cursor = self._database.execute(*statement)
        if not self._pressed:
            self._pressed = True
            signal.raise_signal(signal.SIGINT)
        return cursor


def test_ctrl_c_during_a_write_leaves_no_transaction_open(
    memory: Memory, folder: Path, spaces: dict[str, Space], entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory._store is not None
    monkeypatch.setattr(memory._store, "_db", _Interrupted(memory._store._db))
    with pytest.raises(KeyboardInterrupt):
        memory.add(entries(1))
    assert memory.add(entries(1)) == [1]
    with Memory.open(folder, spaces) as other:
        assert other.add(entries(1)) == [2]


@pytest.mark.parametrize("method", ["put", "drop", "view"])
@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_while_changes_are_taken_in_loses_none_of_them(
    memory: Memory, entries: Make, monkeypatch: pytest.MonkeyPatch, method: str, late: bool
) -> None:
    ids = memory.add(entries(5))
    assert len(memory.search("image", np.ones(16), 999)) == 5
    memory.remove(ids[:2])
    if method != "drop":  # which would be that of what is put
        memory.add(entries(100))
    step = getattr(Field, method)

    def interrupted(*args: Any) -> Any:
        if late:
            step(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Field, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            memory.search("image", np.ones(16), 999)
    hits = memory.search("image", np.ones(16), 999)
    assert sorted(hit.id for hit in hits) == [entry.id for entry in memory.entries()]
