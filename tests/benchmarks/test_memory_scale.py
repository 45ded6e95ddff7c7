"""The large memory's benchmark, small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memory_scale
import numpy as np
import pytest
from memory_scale import DIM, MEMBERS, SPACES, clustered, exact, measure, recall

from edge_ravlm.runtime.memory import Memory, index


def test_a_small_one_is_built_opened_and_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SCAN_ROWS", 500)  # so that 2,000 entries are searched as 100,000 are
    monkeypatch.setattr(index, "ROWS_PER_NODE", 4)
    steps: list[dict[str, Any]] = []
    figures = measure(2_000, 100, 2, tmp_path / "memory", lambda **step: steps.append(step))
    assert figures["recall10"] >= 0.99
    assert (figures["entries"], figures["dim"]) == (2_000, 256)
    assert all(figures[name] > 0 for name in ("open_ms", "first_search_ms", "p50_ms", "p99_ms", "size_mb"))
    assert steps[-1]["completed"] == steps[0]["total"] == 6_000
    assert [step["completed"] for step in steps] == sorted(step["completed"] for step in steps)
    with Memory.open(tmp_path / "memory", SPACES, read_only=True) as memory:
        assert len(memory) == 2_000
        assert memory.stats().tail == 0
    assert len(list((tmp_path / "memory").glob("generation-*/image.usearch"))) == 1


def test_brute_force_is_exact() -> None:
    vectors, queries = clustered(300, 7, seed=3)
    by_sorting = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :10]
    assert [set(row) for row in exact(vectors, queries).tolist()] == [set(row) for row in by_sorting.tolist()]


def test_recall_counts_what_was_found() -> None:
    truth = np.array([[1, 2], [3, 4]], np.int64)
    assert recall([[2, 1], [4, 3]], truth) == 1.0
    assert recall([[2, 9], [8, 7]], truth) == 0.25
    assert recall([[2], [3, 4]], truth) == 0.75


def test_vectors_come_in_clusters_as_described() -> None:
    vectors, queries = clustered(20 * MEMBERS, 50, seed=4)
    assert vectors.shape == (20 * MEMBERS, DIM)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([vectors, queries]), axis=1), 1, rtol=1e-5)
    cosines = queries @ vectors.T
    near = cosines > 0.5
    assert np.median(cosines[near]) == pytest.approx(1 / (1 + memory_scale.SPREAD**2), abs=0.03)
    assert near.sum(axis=1).mean() == pytest.approx(MEMBERS, rel=0.2)
    assert cosines.max() < 0.99, "no query is in the memory"
