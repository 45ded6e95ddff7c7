"""Our memory alone, with the two fields of a bundle's: how fast it opens, how fast it finds, how much of the truth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import percentiles

from edge_ravlm.runtime.memory import Memory, NewEntry, Space
from memory import ours
from memory.data import DIM, MEMBERS, K, Vectors, clustered, exact, recall

SPACES = {**ours.SPACES, "text": Space("2" * 64, DIM)}
"""Both fields that a memory of a bundle has; `image` is the one that is searched."""

_BATCH = 5_000


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
