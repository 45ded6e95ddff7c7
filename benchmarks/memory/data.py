"""What is stored, what is asked, and what is true.

No collection of a million pictures with a licence to use installs by package name, so the vectors are synthetic:
clusters on the unit sphere, about 50 members each, two members of one cluster at a cosine of about 0.74. Queries are
further members, none of which is stored. Recall is against brute force over the unrounded float32 vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIM = 256
MEMBERS, SPREAD = 50, 0.6
"""Entries in a cluster, and how far they lie from its centre (which has length one)."""

K = 10
_BLOCK = 20_000
"""Vectors worked on at a time, so that a million need little more memory than they take themselves."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class DataSet:
    """What a benchmark asks for.

    Attributes:
        vectors: float32 [n, DIM], mapped from their file.
        queries: float32 [q, DIM].
        truth: positions of the K nearest to each query, int64 [q, K], in no order.
    """

    vectors: Vectors
    queries: Vectors
    truth: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> DataSet:
        """What ``kept`` has written."""
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        return cls(vectors, np.load(folder / "queries.npy"), np.load(folder / "truth.npy"))


def kept(count: int, queries: int, cache: Path) -> Path:
    """The folder in cache of ``count`` vectors with their queries and truth, made if it is not there."""
    folder = cache / f"data-{count}-{queries}"
    if not (folder / "truth.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        vectors, asked = clustered(count, queries, seed=1)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "queries.npy", asked)
        np.save(folder / "truth.npy", exact(vectors, asked))  # the last one, so that it tells that all are there
    return folder


def clustered(count: int, queries: int, seed: int) -> tuple[Vectors, Vectors]:
    """Vectors float32 [count, DIM] and queries float32 [queries, DIM] around the same centres, all of unit length."""
    random = np.random.default_rng(seed)
    centres = _unit(random.standard_normal((max(1, count // MEMBERS), DIM), np.float32))
    chosen = random.integers(len(centres), size=count + queries)
    vectors = np.empty((count + queries, DIM), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = centres[chosen[start : start + _BLOCK]]
        vectors[start : start + _BLOCK] = _unit(block + SPREAD * _unit(random.standard_normal(block.shape, np.float32)))
    return vectors[:count], vectors[count:]


def exact(vectors: Vectors, queries: Vectors) -> NDArray[np.int64]:
    """The positions of the K nearest vectors to each query by brute force, int64 [queries, K], in no order."""
    found = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        fresh = queries @ vectors[start : start + _BLOCK].T
        near = _highest(fresh)
        found = np.concatenate([found, near + start], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(fresh, near, 1)], axis=1)
        best = _highest(scores)
        found, scores = np.take_along_axis(found, best, 1), np.take_along_axis(scores, best, 1)
    return found


def recall(found: Sequence[Sequence[int]], truth: NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found."""
    hits = sum(len(set(got) & set(true)) for got, true in zip(found, truth.tolist(), strict=True))
    return hits / truth.size


def _highest(scores: Vectors) -> NDArray[np.intp]:
    return np.argpartition(-scores, min(K, scores.shape[1]) - 1, axis=1)[:, :K]


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
