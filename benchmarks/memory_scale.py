"""A memory of many entries: how fast it opens, how fast it finds, and how much of the truth.

No collection of 100,000 pictures with a licence to use installs by package name, so the vectors are synthetic:
clusters on the unit sphere, about 50 members each, two members of one cluster at a cosine of about 0.74. Queries are
further members, none of which is in the memory. Recall is against brute force over the unrounded float32 vectors.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import percentiles
from numpy.typing import NDArray

from edge_ravlm.runtime.memory import Memory, NewEntry, Space

DIM = 256
MEMBERS, SPREAD = 50, 0.6
"""Entries in a cluster, and how far they lie from its centre (which has length one)."""

SPACES = {"image": Space("1" * 64, DIM), "text": Space("2" * 64, DIM)}
"""Both fields that a memory of a bundle has; `image` is the one that is searched."""

K = 10
_BATCH = 5_000

Vectors = NDArray[np.float32]


def clustered(count: int, queries: int, seed: int) -> tuple[Vectors, Vectors]:
    """Vectors float32 [count, DIM] and queries float32 [queries, DIM] around the same centres, all of unit length."""
    random = np.random.default_rng(seed)
    centres = _unit(random.standard_normal((max(1, count // MEMBERS), DIM), np.float32))
    chosen = centres[random.integers(len(centres), size=count + queries)]
    vectors = _unit(chosen + SPREAD * _unit(random.standard_normal((count + queries, DIM), np.float32)))
    return vectors[:count], vectors[count:]


def build(folder: Path, images: Vectors, texts: Vectors, advance: Callable[..., None]) -> None:
    """A memory of an entry per row, compacted; its ids are 1, 2, … in the order of the rows.

    Args:
        folder: new or empty.
        images: float32 [n, DIM].
        texts: float32 [n, DIM].
        advance: told ``completed`` and ``total`` steps; an entry counts once when added and once per field after.
    """
    count = len(images)
    total = count * (1 + len(SPACES))
    with Memory.open(folder, SPACES, auto_compact=False) as memory:
        for start in range(0, count, _BATCH):
            rows = range(start, min(start + _BATCH, count))
            memory.add([NewEntry(f"thing {i}", vectors={"image": images[i], "text": texts[i]}) for i in rows])
            advance(completed=rows.stop, total=total)
        memory.compact(lambda done, _: advance(completed=count + done, total=total))


def exact(vectors: Vectors, queries: Vectors, k: int = K) -> NDArray[np.int64]:
    """The positions of the k nearest vectors to each query by brute force, int64 [queries, k], in no order."""
    blocks = np.array_split(queries, max(1, len(queries) // 100))
    found = [np.argpartition(-(block @ vectors.T), k - 1, axis=1)[:, :k] for block in blocks]
    return np.concatenate(found).astype(np.int64)


def measure(entries: int, queries: int, opens: int, folder: Path, advance: Callable[..., None]) -> dict[str, Any]:
    """Build a memory in an empty folder and take its figures; times with the file cache warm."""
    images, asked = clustered(entries, queries, seed=1)
    texts, _ = clustered(entries, 0, seed=2)
    start = time.perf_counter()
    build(folder, images, texts, advance)
    built_s = time.perf_counter() - start
    open_ms, first_ms = _opening(folder, asked[0], opens)
    found, spent_ms = _searching(folder, asked)
    truth = exact(images, asked)
    return {
        "entries": entries,
        "dim": DIM,
        "vectors": f"synthetic, clusters of {MEMBERS}",
        "build_s": round(built_s, 1),
        "size_mb": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1),
        "open_ms": open_ms,
        "first_search_ms": first_ms,
        **{f"{name}_ms": value for name, value in percentiles(spent_ms).items()},
        "recall10": recall(found, truth),
    }


def recall(found: Sequence[Sequence[int]], truth: NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found."""
    hits = sum(len(set(got) & set(true)) for got, true in zip(found, truth.tolist(), strict=True))
    return hits / truth.size


def _opening(folder: Path, query: Vectors, times: int) -> tuple[float, float]:
    """Median ms to open the memory, and of the first search, which maps the graph."""
    opened, searched = [], []
    for _ in range(times):
        start = time.perf_counter()
        with Memory.open(folder, SPACES) as memory:
            ready = time.perf_counter()
            memory.search("image", query, K)
            searched.append((time.perf_counter() - ready) * 1e3)
        opened.append((ready - start) * 1e3)
    return round(statistics.median(opened), 2), round(statistics.median(searched), 2)


def _searching(folder: Path, queries: Vectors) -> tuple[list[list[int]], list[float]]:
    """Positions found for each query, and the ms of each search with exact re-ranking."""
    found, spent_ms = [], []
    with Memory.open(folder, SPACES, read_only=True) as memory:
        for query in queries:
            start = time.perf_counter()
            hits = memory.search("image", query, K)
            spent_ms.append((time.perf_counter() - start) * 1e3)
            found.append([hit.id - 1 for hit in hits])
    return found, spent_ms


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
