"""Bytes that are not the ones we wrote: never served, never a crash."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ravlm.errors import EdgeRavlmError, MemoryDamaged, MemoryFault
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, generations, store

Finder = Callable[[Path], Path]


@pytest.fixture
def vectors(rows: Callable[..., NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
    return dict(enumerate(rows(200), 1))


@pytest.fixture
def made(
    folder: Path, spaces: dict[str, Space], vectors: dict[int, NDArray[np.float32]], graphs: None
) -> Iterator[Path]:
    """A compacted memory of 200 entries in both fields, all of it in graphs."""
    with Memory.open(folder, spaces, auto_compact=False) as memory:
        memory.add(
            [
                NewEntry(f"e{i}", vectors={"image": v, "text": v[:8]} if i % 2 else {"image": v})
                for i, v in vectors.items()
            ]
        )
        memory.compact()
    return folder


def _flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x55
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _swap(path: Path) -> None:
    other = path.with_name(path.name.replace("image", "text"))
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 64)


_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "first byte": lambda path: _flip(path, 0),
    "middle byte": lambda path: _flip(path, 0.5),
    "last byte": lambda path: _flip(path, 1),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": _grow,
    "deleted": Path.unlink,
    "swapped": _swap,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize(
    ("file", "damage"),
    [("image.usearch", damage) for damage in _DAMAGE]
    + [(file, how) for file in ("image.ids", "image.f16") for how in ("middle byte", "truncated", "deleted", "swapped")]
    + [("image.expansion", how) for how in ("middle byte", "truncated", "deleted")],
)
def test_damaged_generations_are_never_served(
    made: Path,
    spaces: dict[str, Space],
    vectors: Any,
    generation: Finder,
    nearest: Any,
    answers: Any,
    nearly: Any,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: str,
) -> None:
    _DAMAGE[damage](generation(made) / file)
    expected = nearest(vectors, vectors[9], 12)
    with Memory.open(made, spaces, read_only=True) as memory:
        answers(memory.search("image", vectors[9], 12), expected)
    assert f"{file}" in caplog.text or "text." in caplog.text
    with Memory.open(made, spaces, auto_compact=False) as memory:
        answers(memory.search("image", vectors[9], 12), expected)
        memory.compact()
        assert memory.verify() == []
        nearly(memory.search("image", vectors[9], 12), expected)


def test_a_lost_generation_is_made_again_in_the_background(
    made: Path, spaces: dict[str, Space], vectors: Any, generation: Finder, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(generation(made))
    with Memory.open(made, spaces) as memory:
        assert memory.search("image", vectors[9], 1)[0].id == 9
    caplog.clear()
    with Memory.open(made, spaces, auto_compact=False) as memory:
        assert memory.stats().tail == 0
        assert memory.verify() == []
    assert not caplog.text


def test_files_are_hashed_once_and_again_after_any_change(
    made: Path, spaces: dict[str, Space], generation: Finder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hashed: list[int] = []
    sha256 = generations._sha256
    monkeypatch.setattr(generations, "_sha256", lambda content: hashed.append(len(content)) or sha256(content))

    def files_hashed(path: Path) -> int:
        hashed.clear()
        Memory.open(path, spaces).close()
        return len(hashed)

    assert files_hashed(made) == 0
    os.utime(generation(made) / "image.f16")
    assert files_hashed(made) == 1
    shutil.copytree(made, tmp_path / "copy")
    time.sleep(0.05)  # a file this fresh gets no stamp
    assert files_hashed(tmp_path / "copy") == 8
    assert files_hashed(tmp_path / "copy") == 0


def test_verify_names_what_rotted_behind_the_file_systems_back(
    made: Path, spaces: dict[str, Space], vectors: Any, generation: Finder, nearest: Any, answers: Any
) -> None:
    rotten = generation(made) / "image.f16"
    _flip(rotten, 0.5)
    with rotten.open("rb") as file, closing(sqlite3.connect(made / "memory.db")) as db, db:
        monkey = pytest.MonkeyPatch()
        monkey.setattr(generations, "_SETTLED_NS", 0)
        db.execute("UPDATE files SET stamp = ? WHERE name = 'image.f16'", (generations._stamp(file.fileno()),))
        monkey.undo()
    with Memory.open(made, spaces, auto_compact=False) as memory:
        (problem,) = memory.verify()
        assert "generation-000001/image.f16" in problem
        answers(memory.search("image", vectors[9], 12), nearest(vectors, vectors[9], 12))
        memory.compact()
        assert memory.verify() == []


def test_a_read_only_memory_stops_serving_what_verify_found_rotten(
    made: Path, spaces: dict[str, Space], vectors: Any, generation: Finder, nearest: Any, answers: Any
) -> None:
    with Memory.open(made, spaces, read_only=True) as memory:
        memory.search("image", vectors[9], 1)
        _flip(generation(made) / "image.f16", 0.5)
        assert len(memory.verify()) == 1
        answers(memory.search("image", vectors[9], 12), nearest(vectors, vectors[9], 12))


def test_verify_finds_where_the_generation_disagrees(made: Path, spaces: dict[str, Space]) -> None:
    with closing(sqlite3.connect(made / "memory.db")) as db, db:
        db.execute("DELETE FROM vectors WHERE entry_id = 7 AND field = 'text'")
    with Memory.open(made, spaces, auto_compact=False) as memory:
        (problem,) = memory.verify()
        assert "text.ids lists 1 entries more" in problem


@pytest.mark.parametrize("harm", ["header", "emptied", "halved", "other program", "newer"])
def test_a_damaged_or_foreign_database_is_refused_in_one_sentence(
    made: Path, spaces: dict[str, Space], harm: str
) -> None:
    path = made / "memory.db"
    if harm == "header":
        path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    elif harm in ("emptied", "halved"):
        os.truncate(path, 0 if harm == "emptied" else path.stat().st_size // 2)
    else:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA application_id=7" if harm == "other program" else "PRAGMA user_version=99")
    damaged = harm not in ("other program", "newer")
    with pytest.raises(MemoryDamaged if damaged else MemoryFault, match=r"memory '.*'.*\.$") as caught:
        Memory.open(made, spaces)
    assert isinstance(caught.value, MemoryDamaged) is damaged
    assert "\n" not in str(caught.value)


def test_altered_rows_are_refused_not_served(made: Path, spaces: dict[str, Space]) -> None:
    path = made / "memory.db"
    with Memory.open(made, spaces, auto_compact=False) as memory:
        memory.add([NewEntry("the red mug", vectors={"image": np.ones(16)})])
    path.write_bytes(path.read_bytes().replace(b"the red mug", b"the ted mug"))
    with Memory.open(made, spaces, auto_compact=False) as memory:
        with pytest.raises(MemoryDamaged, match="entry 201 altered"):
            memory.get([201])
        anew = "memory.db: the index of words disagreed with the entries; it was made anew"
        assert memory.verify() == ["memory.db: entry 201 altered", anew]
    path.write_bytes(path.read_bytes().replace(np.full(16, 0.25, np.float16).tobytes(), b"\1" * 32))
    with pytest.raises(MemoryDamaged, match="vector of entry 201 altered"):
        Memory.open(made, spaces)


@pytest.mark.parametrize(
    "change",
    ["UPDATE entries SET id = 1000 WHERE id = 7", "UPDATE vectors SET entry_id = 1000 WHERE entry_id = 7"],
)
def test_what_was_an_entrys_is_not_taken_for_anothers(made: Path, spaces: dict[str, Space], change: str) -> None:
    with closing(sqlite3.connect(made / "memory.db")) as database, database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute(change)
    shutil.rmtree(made / "generation-000001")

    def read() -> None:
        with Memory.open(made, spaces, read_only=True) as memory:
            list(memory.entries())

    with pytest.raises(MemoryDamaged, match="entry 1000 altered"):  # vectors are read on opening
        read()


def test_a_memory_of_format_1_is_read_and_becomes_one_of_today_when_it_is_written_to(
    made: Path, spaces: dict[str, Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksums do not cover the entry's id, and it has no index of words; older programs must not meet them."""

    def version() -> int:
        with closing(sqlite3.connect(made / "memory.db")) as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])

    vector = np.ones(spaces["image"].dim, np.float32)
    with monkeypatch.context() as before:
        before.setattr(store, "_of", lambda _, crc: crc)
        with Memory.open(made, spaces) as memory:
            id_ = memory.add([NewEntry("from before", vectors={"image": vector})])[0]
    with closing(sqlite3.connect(made / "memory.db")) as database:
        database.execute("PRAGMA user_version = 1")
        database.execute("DROP TABLE words")
    for read_only in (True, False):
        with Memory.open(made, spaces, read_only=read_only) as memory:
            assert memory.get([id_])[0].text == "from before"
            assert memory.search("image", vector, 1)[0].id == id_
            assert memory.saying("before") == []
            assert memory.verify() == []
        assert version() == 1, "who only reads locks no older program out"
    with Memory.open(made, spaces) as memory:
        memory.add([NewEntry("from now on", vectors={"image": vector})])
        assert [entry.text for entry in memory.entries()][-2:] == ["from before", "from now on"]
        assert memory.saying("before") == [id_]
        assert memory.verify() == []
    assert version() == 3


@pytest.mark.parametrize(("change", "noticed"), [("x'ff'", False), ("x'ff' WHERE id > 10", True)])
def test_a_damaged_index_of_words_costs_no_entry_and_is_made_anew(
    made: Path, spaces: dict[str, Space], caplog: pytest.LogCaptureFixture, change: str, noticed: bool
) -> None:
    with Memory.open(made, spaces) as memory:
        id_ = memory.add([NewEntry("code ZX 4711", vectors={"image": np.ones(16)})])[0]
    with closing(sqlite3.connect(made / "memory.db")) as database, database:
        database.execute(f"UPDATE words_data SET block = {change}")
    with Memory.open(made, spaces, auto_compact=False) as memory:
        assert memory.get([id_])[0].text == "code ZX 4711"
        assert memory.saying("zx") == []
        assert ("edge-ravlm memory verify" in caplog.text) is noticed
        assert "made anew" in memory.verify()[-1]
        assert memory.saying("zx") == [id_]
        assert memory.verify() == []


HARMS = (
    "UPDATE words_data SET block = x'ff' WHERE id = 10",
    "DELETE FROM words_data",
    "DELETE FROM words_config",
    "UPDATE words_config SET v = 99",
    "DROP TABLE words_config",
    "DROP TABLE words_data",
    "DROP TABLE words_idx",
    "DROP TABLE words",
)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("healed_by", ["add", "remove", "verify"])
def test_however_the_index_of_words_is_damaged_the_memory_is_read_and_written(
    made: Path, spaces: dict[str, Space], harm: str, healed_by: str
) -> None:
    with Memory.open(made, spaces) as memory:
        kept, other = memory.add([NewEntry(f"code ZX {n}", vectors={"image": np.ones(16)}) for n in (4711, 4712)])
    with closing(sqlite3.connect(made / "memory.db")) as database, database:
        database.execute(harm)
    with Memory.open(made, spaces, auto_compact=False) as memory, Memory.open(made, read_only=True) as reader:
        for opened in (memory, reader):
            assert opened.saying("4711") == []
            assert opened.search("image", np.ones(16), 1, words="code 4711")[0].id == kept
        if healed_by == "add":
            assert memory.saying("4713") == []
            added = memory.add([NewEntry("code ZX 4713", vectors={"image": np.ones(16)})])
            assert memory.saying("4713") == added
        elif healed_by == "remove":
            assert memory.remove(other) == 1
            assert memory.saying("4712") == []
        else:
            assert memory.verify() == ["memory.db: the index of words disagreed with the entries; it was made anew"]
        assert memory.verify() == []
        assert memory.saying("4711") == reader.saying("4711") == [kept]


def test_verify_tells_what_it_found_also_where_the_index_of_words_cannot_be_made_anew(
    made: Path, spaces: dict[str, Space]
) -> None:
    path = made / "memory.db"
    with Memory.open(made, spaces) as memory:
        texts = (" ".join(f"u{7 * row + n}" for n in range(9)) for row in range(3000))
        memory.add([NewEntry(text, vectors={"image": np.ones(16)}) for text in texts])
    with closing(sqlite3.connect(path)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'words_data'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    data[(page - 1) * size : (page - 1) * size + 8] = b"\x55" * 8
    path.write_bytes(data)
    with Memory.open(made, spaces, auto_compact=False) as memory:
        first, *_, last = memory.verify()
        assert f"Page {page}" in first
        assert "cannot be made anew" in last
        assert memory.saying("anything") == []
        assert len(list(memory.entries())) == len(memory)


def test_no_flipped_byte_in_the_database_crashes_or_changes_an_entry(
    made: Path, spaces: dict[str, Space], vectors: Any
) -> None:
    path = made / "memory.db"
    sound = path.read_bytes()
    with Memory.open(made, spaces) as memory:
        truth = {entry.id: entry for entry in memory.entries()}
    random = np.random.default_rng(0)
    refused = 0
    for at in random.integers(0, len(sound), 60):
        data = bytearray(sound)
        data[at] ^= 1 << int(random.integers(8))
        path.write_bytes(data)
        shutil.rmtree(made / "generation-000001", ignore_errors=True)  # so that all vectors are read
        try:
            with Memory.open(made, spaces, read_only=True) as memory:
                for entry in memory.entries():
                    assert truth[entry.id] == entry
                for hit in memory.search("image", vectors[3], 5):
                    assert hit.score == pytest.approx(
                        vectors[3] @ vectors[hit.id] / np.linalg.norm(vectors[3]) / np.linalg.norm(vectors[hit.id]),
                        abs=1e-3,
                    )
        except EdgeRavlmError:
            refused += 1
    assert 0 < refused < 60


@pytest.fixture(autouse=True)
def _warnings_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
