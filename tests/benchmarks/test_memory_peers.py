"""The memory's benchmarks, small."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import memory_peers
import numpy as np
import pytest
from memory import data, ours, processes, scale, systems
from memory.data import DIM, MEMBERS, SPREAD, DataSet, clustered, exact, recall
from memory.front import Point, dominates, dominators, front
from memory.processes import SystemProcess
from memory.systems import ALONE, OURS, SYSTEMS
from memory.worker import resident_mb

from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.runtime.memory import Memory, index

TINY = memory_peers.Size(counts=(1_000,), queries=40, rounds=2, turn_s=0.2, starts=1, adding_s=0.1)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return memory_peers.measure(TINY, tmp_path_factory.mktemp("bench"), [OURS, "brute-force"])


def test_ours_and_brute_force_side_by_side(figures: dict[str, Any]) -> None:
    both = figures["sizes"]["1000"]
    assert set(both) == {OURS, "brute-force"}
    assert [point["setting"] for point in both[OURS]["points"]] == list(SYSTEMS[OURS].settings)
    assert all(point["recall10"] >= 0.99 for point in both[OURS]["points"])
    assert both["brute-force"]["points"][0]["recall10"] == 1.0
    for system in both.values():
        assert all(type(value) in (int, float) for point in system["points"] for value in point.values())
        assert all(0 < point["p50_ms"] <= point["p99_ms"] for point in system["points"])
        assert all(0 < point["searches"] <= 40 for point in system["points"])
        assert system["open_ms"] > 0
        assert system["size_mb"] > 1_000 * DIM * 2 / 1e6
        assert system["added"] > 0
    assert both[OURS]["build_s"] > 0
    assert figures["left_out"] == {}


def test_ours_is_aimed_at_expansions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SCAN_ROWS", 500)
    monkeypatch.setattr(index, "ROWS_PER_NODE", 4)
    vectors, queries = clustered(1_000, 1, seed=1)
    memory = ours.Ours()
    memory.build(vectors, tmp_path)
    memory.open(tmp_path)
    for setting in (0, 500):
        memory.aim(setting)
        assert set(memory.search(queries[0], 10)) == set(exact(vectors, queries)[0].tolist())
    graphs = [opened._live.bases()[1]["image"].graphs for opened in memory._opened.values()]
    assert [graph and graph.expansion for graph in graphs] == [index.EXPANSIONS[0], 500]
    memory.close()


def test_built_files_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = data.kept(60, 4, tmp_path)
    first = processes.built("brute-force", vectors, Path(sys.executable), tmp_path)
    monkeypatch.setattr(SystemProcess, "tell", lambda *_, **__: pytest.fail("built again"))
    assert processes.built("brute-force", vectors, Path(sys.executable), tmp_path) == first
    assert processes.in_cache("brute-force", vectors, tmp_path)
    more_queries = data.kept(60, 5, tmp_path)  # whose vectors are others
    assert not processes.in_cache("brute-force", more_queries, tmp_path)


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = tmp_path / "hnswlib.py"  # stands in for the package wherever it is installed
    without.write_text("raise ModuleNotFoundError('none', name='hnswlib')", encoding="utf-8")
    vectors = data.kept(60, 4, tmp_path)
    monkeypatch.setattr(processes, "_BENCHMARKS", f"{tmp_path}{os.pathsep}{processes._BENCHMARKS}")
    process = SystemProcess("hnswlib", tmp_path, vectors, Path(sys.executable))
    with process, pytest.raises(EdgeRavlmError) as caught:
        process.tell("build")
    assert str(caught.value) == (
        "memory 'hnswlib': expected an answer, got no package hnswlib; "
        "install what memory.txt lists, or leave it out with --only."
    )


def test_environments_that_cannot_be_made_leave_their_systems_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> Path:
        raise EdgeRavlmError("environment", expected="packages", got="none", do="look")

    monkeypatch.setattr(memory_peers, "interpreter", refuse)
    left_out: dict[str, str] = {}
    assert set(memory_peers._interpreters(list(SYSTEMS), tmp_path, left_out)) == {OURS, "brute-force"}
    assert left_out == {"faiss-hnsw, faiss-ivf, hnswlib, sqlite-vec": "environment: expected packages, got none; look."}
    assert capsys.readouterr().err.count("\n") == 1


def _point(recall10: float, p50_ms: float, p99_ms: float) -> Point:
    return Point(0, recall10, p50_ms, p99_ms, 100)


def test_who_finds_no_less_and_is_faster_throughout_dominates() -> None:
    us = _point(0.99, 1.0, 2.0)
    assert dominates(_point(0.99, 0.9, 1.9), us)
    assert dominates(_point(1.0, 0.9, 1.9), us)
    assert not dominates(_point(0.989, 0.1, 0.2), us)
    assert not dominates(_point(1.0, 0.9, 2.0), us)
    assert not dominates(_point(1.0, 1.0, 1.9), us)
    assert not dominates(us, us)


def test_dominators_are_named_with_their_fastest_point_that_dominates() -> None:
    us = _point(0.99, 1.0, 2.0)
    points = [_point(0.95, 0.1, 0.2), _point(0.99, 0.8, 1.0), _point(1.0, 0.9, 1.0)]
    assert dominators(us, {"fast": points, "slow": [_point(1.0, 5.0, 9.0)]}) == {"fast": points[1]}
    assert front([us, *points]) == [points[0], points[1], points[2]]


def test_what_is_said_of_a_million() -> None:
    one = {"setting": 0, "recall10": 0.99, "p50_ms": 1.0, "p99_ms": 2.0, "searches": 9}
    peer = {**one, "p50_ms": 1.2, "p99_ms": 2.1}  # slower than ours in two threads, faster than ours in one
    us = {
        "open_ms": 9.0,
        "first_search_ms": 80.0,
        "anon_mb": 20.0,
        "size_mb": 1_000.0,
        "points": [one, {**one, "setting": ALONE, "p50_ms": 1.5, "p99_ms": 2.5}, {**one, "setting": 64}],
    }
    assert memory_peers.summary(us) == {
        "open_ms": 9.0,
        "first_search_ms": 80.0,
        "recall10": 0.99,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "one_thread_p50_ms": 1.5,
        "one_thread_p99_ms": 2.5,
        "anon_fraction": 0.02,
    }
    assert memory_peers.dominated_by({OURS: us, "peer": {"points": [peer]}}) == {"peer": peer}


def test_resident_memory_is_split() -> None:
    status = "Name:\tpython\nVmRSS:\t    3000 kB\nRssAnon:\t    1000 kB\nRssFile:\t    2000 kB\nRssShmem:\t  0 kB\n"
    assert resident_mb(status) == {"anon": 1.024, "file": 2.048}


def test_graphs_have_the_same_parameters() -> None:
    assert systems.CONNECTIVITY == index.CONNECTIVITY
    for count in (1, index.LARGE_ROWS, index.LARGE_ROWS + 1, 1_000_000):
        assert systems.expansion_add(count) == index.expansion_add(count)
    assert "def near_each_other" in ours.recipe(), "a change of how graphs are built makes built files stale"


def test_our_memory_alone_is_built_opened_and_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SCAN_ROWS", 500)  # so that 2,000 entries are searched as 100,000 are
    monkeypatch.setattr(index, "ROWS_PER_NODE", 4)
    steps: list[dict[str, Any]] = []
    vectors, queries = clustered(2_000, 100, seed=1)
    scale.build(tmp_path / "memory", vectors, vectors, lambda **step: steps.append(step))
    assert steps[-1]["completed"] == steps[0]["total"] == 6_000
    assert [step["completed"] for step in steps] == sorted(step["completed"] for step in steps)
    with Memory.open(tmp_path / "memory", scale.SPACES, read_only=True) as memory:
        assert len(memory) == 2_000
        assert memory.stats().tail == 0
        found = [[hit.id - 1 for hit in memory.search("image", query, 10)] for query in queries]
    assert recall(found, exact(vectors, queries)) >= 0.99
    assert len(list((tmp_path / "memory").glob("generation-*/image.usearch"))) == 1


def test_brute_force_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_BLOCK", 77)  # the last block is shorter than the others
    vectors, queries = clustered(300, 7, seed=3)
    by_sorting = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :10]
    assert [set(row) for row in exact(vectors, queries).tolist()] == [set(row) for row in by_sorting.tolist()]


def test_kept_data_is_what_was_made(tmp_path: Path) -> None:
    vectors, queries = clustered(60, 4, seed=1)
    loaded = DataSet.load(data.kept(60, 4, tmp_path))
    np.testing.assert_array_equal(loaded.vectors, vectors)
    np.testing.assert_array_equal(loaded.queries, queries)
    assert loaded.truth.shape == (4, 10)


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
    assert np.median(cosines[near]) == pytest.approx(1 / (1 + SPREAD**2), abs=0.03)
    assert near.sum(axis=1).mean() == pytest.approx(MEMBERS, rel=0.2)
    assert cosines.max() < 0.99, "no query is in the memory"
