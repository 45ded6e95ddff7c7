"""Small memories with vectors that never tie, and a plain numpy model to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge_ravlm.errors
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, generations, index

SPACES = {"image": Space("ab12" * 16, 16), "text": Space("cd34" * 16, 8)}
ROOT = Path(edge_ravlm.errors.__file__).parents[1]


@pytest.fixture
def spaces() -> dict[str, Space]:
    return dict(SPACES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home.memory"


@pytest.fixture
def memory(folder: Path, spaces: dict[str, Space]) -> Iterator[Memory]:
    with Memory.open(folder, spaces, auto_compact=False) as opened:
        yield opened


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the graph from 32 rows on, so that small tests go through it."""
    monkeypatch.setattr(index, "SCAN_ROWS", 32)
    monkeypatch.setattr(index, "ROWS_PER_NODE", 0.25)


@pytest.fixture
def rows() -> Callable[..., NDArray[np.float32]]:
    """rows(n, dim=16, seed=0): float32 [n, dim], not normalised."""

    def make(n: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
        return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)

    return make


@pytest.fixture
def entries(rows: Callable[..., NDArray[np.float32]]) -> Callable[..., list[NewEntry]]:
    """entries(n, seed=0): n entries; entry i is tagged n=i and side=left or right."""

    def make(n: int, seed: int = 0, **more: Any) -> list[NewEntry]:
        return [
            NewEntry(
                f"entry {i}",
                tags={"n": i, "side": ("left", "right")[i % 2]},
                time=1000.0 + i,
                vectors={"image": row},
                **more,
            )
            for i, row in enumerate(rows(n, seed=seed))
        ]

    return make


@pytest.fixture
def nearest() -> Callable[..., list[tuple[int, float]]]:
    """nearest(vectors by id, query, k): what an exact search must answer, as (id, cosine)."""

    def find(vectors: Mapping[int, NDArray[Any]], query: NDArray[Any], k: int) -> list[tuple[int, float]]:
        unit = np.asarray(query, np.float64) / np.linalg.norm(query)
        scores = {i: float(_stored(v) @ unit) for i, v in vectors.items()}
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]

    return find


@pytest.fixture
def nearly() -> Callable[..., None]:
    """nearly(hits, expected): as many, in order; a graph may miss one in ten."""

    def check(hits: list[Any], expected: list[tuple[int, float]]) -> None:
        assert len(hits) == len(expected) == len({hit.id for hit in hits})
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        missed = {id_ for id_, _ in expected} - {hit.id for hit in hits}
        assert len(missed) <= max(1, len(hits) // 10)
        by_id = dict(expected)
        for hit in hits:
            assert hit.score == pytest.approx(min(1.0, by_id.get(hit.id, hit.score)), abs=1e-6)
            assert hit.score <= min(1.0, expected[0][1]) + 1e-6

    return check


@pytest.fixture
def answers() -> Callable[..., None]:
    """answers(hits, expected): the same ids in the same order, scores to float32."""

    def check(hits: list[Any], expected: list[tuple[int, float]]) -> None:
        assert [hit.id for hit in hits] == [id_ for id_, _ in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [min(1.0, score) for _, score in expected], atol=1e-6)

    return check


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run(script, *args): a Python script in a process of its own."""

    def start(script: str, *args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script, *map(str, args)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return start


@pytest.fixture
def generation() -> Callable[[Path], Path]:
    """generation(folder): the one generation folder a memory has."""

    def find(folder: Path) -> Path:
        (found,) = folder.glob("generation-*")
        return found

    return find


@pytest.fixture(autouse=True)
def _settle_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "_SETTLED_NS", 12_000_000)


def _stored(vector: NDArray[Any]) -> NDArray[np.float64]:
    unit = np.asarray(vector, np.float64)
    return (unit / np.linalg.norm(unit)).astype(np.float32).astype(np.float16).astype(np.float64)
