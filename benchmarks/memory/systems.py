"""Ours and what a user would pick instead, behind one interface: one thread, cosine of unit vectors.

Graphs are built with the same two parameters everywhere, which are our product's. Libraries that do not promise a
search beside an addition get the lock that their user would have to put around both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memory.data import DIM, Vectors

CONNECTIVITY = 16

TRAINED_EACH = 40
"""Vectors an inverted list is trained on, FAISS's own minimum."""

ROOM = 4096
"""Vectors that can be added to an opened index."""

_BATCH = 5_000


def expansion_add(count: int) -> int:
    """The product's, which is not installed where its peers are."""
    return 128 if count > 200_000 else 64


class System(Protocol):
    """A store of vectors; positions are those of the vectors it was built from."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write its files for float32 [n, DIM] into an empty folder."""

    def open(self, folder: Path) -> None:
        """Open what was built; it is aimed before it is searched."""

    def aim(self, setting: int) -> None:
        """Search with this ef, nprobe or expansion from now on."""

    def search(self, query: Vectors, k: int) -> list[int]:
        """Positions of about the k nearest."""

    def add(self, vector: Vectors) -> None:
        """Take in one more; another thread may be searching."""

    def close(self) -> None:
        """Release what was opened."""


class _Faiss:
    """An index that FAISS's factory makes; the setting is one of its search parameters."""

    def __init__(self, describe: Callable[[int], str], parameter: str) -> None:
        self._faiss: Any = import_module("faiss")
        self._faiss.omp_set_num_threads(1)
        self._describe, self._parameter = describe, parameter
        self._lock = threading.Lock()

    def build(self, vectors: Vectors, folder: Path) -> None:
        description = self._describe(len(vectors))
        index = self._faiss.index_factory(DIM, description, self._faiss.METRIC_INNER_PRODUCT)
        if index.is_trained:
            self._faiss.ParameterSpace().set_index_parameter(index, "efConstruction", expansion_add(len(vectors)))
        else:
            sample = np.random.default_rng(0).permutation(len(vectors))[: TRAINED_EACH * index.nlist]
            index.train(vectors[np.sort(sample)])
        for start in range(0, len(vectors), _BATCH):
            index.add(vectors[start : start + _BATCH])
        self._faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder: Path) -> None:
        self._index = self._faiss.read_index(str(folder / "index.faiss"))

    def aim(self, setting: int) -> None:
        self._faiss.ParameterSpace().set_index_parameter(self._index, self._parameter, setting)

    def search(self, query: Vectors, k: int) -> list[int]:
        with self._lock:
            found: list[int] = self._index.search(query[None], k)[1][0].tolist()
        return found

    def add(self, vector: Vectors) -> None:
        with self._lock:
            self._index.add(vector[None])

    def close(self) -> None:
        del self._index


class _Hnswlib:
    """hnswlib over float32; the setting is ef."""

    def __init__(self) -> None:
        self._index: Any = import_module("hnswlib").Index(space="ip", dim=DIM)
        self._lock = threading.Lock()

    def build(self, vectors: Vectors, folder: Path) -> None:
        self._index.init_index(len(vectors), M=CONNECTIVITY, ef_construction=expansion_add(len(vectors)))
        for start in range(0, len(vectors), _BATCH):
            self._index.add_items(vectors[start : start + _BATCH], num_threads=1)
        self._index.save_index(str(folder / "index.bin"))
        (folder / "count").write_text(str(len(vectors)), encoding="ascii")

    def open(self, folder: Path) -> None:
        count = int((folder / "count").read_text(encoding="ascii"))
        self._index.load_index(str(folder / "index.bin"), max_elements=count + ROOM)
        self._index.set_num_threads(1)

    def aim(self, setting: int) -> None:
        self._index.set_ef(setting)

    def search(self, query: Vectors, k: int) -> list[int]:
        with self._lock:
            found: list[int] = self._index.knn_query(query, k)[0][0].tolist()
        return found

    def add(self, vector: Vectors) -> None:
        with self._lock:
            self._index.add_items(vector[None], num_threads=1)

    def close(self) -> None:
        del self._index


class _SqliteVec:
    """sqlite-vec's exact search over float32 in SQLite; it has no setting."""

    def __init__(self) -> None:
        self._apsw: Any = import_module("apsw")
        self._extension: str = import_module("sqlite_vec").loadable_path()

    def build(self, vectors: Vectors, folder: Path) -> None:
        with closing(self._connected(folder)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(f"CREATE VIRTUAL TABLE kept USING vec0(vector float[{DIM}] distance_metric=cosine)")
            for start in range(0, len(vectors), _BATCH):
                rows = enumerate(vectors[start : start + _BATCH], start)
                with database:
                    database.executemany(
                        "INSERT INTO kept (rowid, vector) VALUES (?, ?)", ((i, row.tobytes()) for i, row in rows)
                    )

    def open(self, folder: Path) -> None:
        self._reading, self._writing = self._connected(folder), self._connected(folder)

    def aim(self, setting: int) -> None:
        pass

    def search(self, query: Vectors, k: int) -> list[int]:
        rows = self._reading.execute(
            "SELECT rowid FROM kept WHERE vector MATCH ? AND k = ? ORDER BY distance", (query.tobytes(), k)
        )
        return [row[0] for row in rows]

    def add(self, vector: Vectors) -> None:
        self._writing.execute("INSERT INTO kept (vector) VALUES (?)", (vector.tobytes(),))

    def close(self) -> None:
        self._reading.close()
        self._writing.close()

    def _connected(self, folder: Path) -> Any:
        database = self._apsw.Connection(str(folder / "kept.db"))
        database.set_busy_timeout(10_000)
        database.enable_load_extension(True)
        database.load_extension(self._extension)
        database.execute("PRAGMA synchronous=FULL")
        return database


class _BruteForce:
    """A matrix-vector product over float32 mapped from a file; it has no setting."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        np.save(folder / "vectors.npy", vectors)

    def open(self, folder: Path) -> None:
        self._vectors: Vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self._more: Vectors = np.zeros((ROOM, DIM), np.float32)
        self._added = 0

    def aim(self, setting: int) -> None:
        pass

    def search(self, query: Vectors, k: int) -> list[int]:
        scores = np.concatenate([self._vectors @ query, self._more[: self._added] @ query])
        near = np.argpartition(-scores, k - 1)[:k]
        found: list[int] = near[np.argsort(-scores[near])].tolist()
        return found

    def add(self, vector: Vectors) -> None:
        self._more[self._added] = vector
        self._added += 1

    def close(self) -> None:
        del self._vectors


@dataclass(frozen=True)
class Spec:
    """How a system takes part.

    Attributes:
        make: it.
        settings: its operating points; the first is the one that opening and memory are measured at.
        largest: of how many vectors it is built without being asked for; beyond, that takes minutes.
        durable: whether what was added is on the disk when the call returns.
        needs_packages: beside numpy and the product's own.
    """

    make: Callable[[], System]
    settings: tuple[int, ...]
    largest: int = 1_000_000
    durable: bool = False
    needs_packages: bool = True


def _ours() -> System:
    made: System = import_module("memory.ours").Ours()
    return made


OURS = "ours"
ALONE = -1
"""Ours with the expansion that it found, on one processor."""

SYSTEMS = {
    OURS: Spec(_ours, (0, ALONE, 64, 96, 128, 192, 256), durable=True, needs_packages=False),
    "faiss-hnsw": Spec(
        lambda: _Faiss(lambda _: f"HNSW{CONNECTIVITY}", "efSearch"), (64, 16, 32, 128, 256), largest=100_000
    ),
    "faiss-ivf": Spec(lambda: _Faiss(lambda count: f"IVF{int(4 * count**0.5)},Flat", "nprobe"), (16, 1, 4, 64)),
    "hnswlib": Spec(_Hnswlib, (64, 16, 32, 128, 256), largest=100_000),
    "sqlite-vec": Spec(_SqliteVec, (0,), durable=True),
    "brute-force": Spec(_BruteForce, (0,), needs_packages=False),
}
