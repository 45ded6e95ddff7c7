"""What benchmarks say beside their figures."""

from __future__ import annotations

import os

import common
import numpy as np
import pytest
from common import Bystanders, paired_ratio, percentiles, setting, setting_line

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.runtime.bench.report import figure_rows


def test_percentiles() -> None:
    assert percentiles(range(101)) == {"p50": 50.0, "p99": 99.0}
    assert percentiles([0.12345]) == {"p50": 0.123, "p99": 0.123}


def test_a_ratio_above_one_means_that_ours_is_faster() -> None:
    assert paired_ratio([30.0, 30.0, 90.0], [10.0, 10.0, 10.0]) == (3.0, [3.0, 9.0])
    assert paired_ratio([5.0], [10.0]) == (0.5, [0.5, 0.5])


def test_moments_slow_for_both_are_no_difference_between_them() -> None:
    random = np.random.default_rng(1)
    machine = random.uniform(10, 40, 50)
    theirs, ours = 2 * machine + random.normal(0, 0.1, 50), machine + random.normal(0, 0.1, 50)
    ratio, (low, high) = paired_ratio(theirs, ours)
    assert low <= ratio <= high
    assert high - low < 0.1
    _, (low, high) = paired_ratio(random.permutation(theirs), ours)
    assert high - low > 0.3


def test_every_figure_has_a_row() -> None:
    figures = {"rounds": 3, "ms": {"p50": 1.23456, "p99": 2.0}, "taught": [4, 8], "clip": "a.avi", "report": None}
    assert figure_rows(figures) == [
        ("rounds", "3"),
        ("ms.p50", "1.235"),
        ("ms.p99", "2"),
        ("taught", "4 8"),
        ("clip", "a.avi"),
        ("report", "not measured"),
    ]


def test_the_setting_names_machine_libraries_threads_precision_bundle_and_quality() -> None:
    bundle = Bundle.open(STARTER)
    about = setting(bundle, "cpu-u8", 2)
    assert set(about) == {"machine", "threads", "precision", "libraries", "bundle_sha256", "quality"}
    assert about["bundle_sha256"] == bundle.sha256
    assert about["quality"]["cosine_mean"] == bundle.manifest.parity["cpu-u8"].cosine_mean
    line = setting_line(about)
    for part in (about["machine"]["cpu"], "2 threads", "INT8 (cpu-u8)", "onnxruntime 1.", bundle.sha256[:12]):
        assert part in line
    assert "not measured" in setting_line({**about, "quality": None})


@pytest.mark.parametrize(("busy", "own", "share"), [(8.0, 8.0, 0.0), (12.0, 8.0, 0.1), (40.0, 0.0, 1.0)])
def test_bystanders_are_what_was_busy_without_us(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, share: float
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(common, "_now", lambda: (100.0, 1000.0, 50.0))
    others = Bystanders()
    monkeypatch.setattr(common, "_now", lambda: (110.0, 1000.0 + busy, 50.0 + own))
    assert others.share() == share


def test_our_own_work_is_not_a_bystander() -> None:
    clock, busy, own = common._now()
    while common._now()[2] < own + 0.2:
        pass
    after = common._now()
    assert after[0] > clock
    assert after[1] - busy > 0.1  # the processors were busy for as long, up to the kernel's ticks
