"""The spikes benchmark in its shortest form: every figure is there, and is what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spikes
from memory import data, ours

from edge_ravlm.runtime.looking import TOGETHER


def test_every_figure_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PAUSE_S", 0.001), ("QUICK_ENTRIES", 300), ("SEARCHES", 20)):
        monkeypatch.setattr(spikes, name, value)
    found = spikes.measured(quick=True)
    pause = found["pause"]
    assert pause["ratio"] == pytest.approx(pause["plain_ms"]["p50"] / pause["ours_ms"]["p50"], rel=1e-3)
    for number in TOGETHER:
        row = found["together"][f"of_{number}"]
        assert 0 < row["together_ms"] < 10 * row["alone_ms"]
        assert found["together"]["learnt"][f"of_{number}"] > 0
    assert found["answers"]["major_faults_each"] == 0
    assert set(found["first_searches"]) == {"entries", "plain", "locked"}
    assert found["first_searches"]["plain"]["locked"] is False


def test_a_memory_is_searched_in_the_state_that_was_asked_for(tmp_path: Path) -> None:
    vectors, queries = data.clustered(500, 10, seed=1)
    (tmp_path / "memory").mkdir()
    ours.Ours().build(vectors, tmp_path / "memory")
    np.save(tmp_path / "queries.npy", queries)
    found = spikes.searched(tmp_path, lock=False)
    assert found["locked"] is False
    assert found["open_ms"] > 0
    assert found["faults"] >= 0
