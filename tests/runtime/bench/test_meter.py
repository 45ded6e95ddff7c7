"""What answering takes beside time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edge_ravlm.runtime.bench.meter import Gauge, energy_gauge


def counter(folder: Path, zone: int, microjoules: int) -> None:
    path = folder / f"intel-rapl:{zone}"
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("1000000000\n")


def test_the_processors_counters_are_added_up(tmp_path: Path) -> None:
    counter(tmp_path, 0, 5_000_000)
    counter(tmp_path, 1, 1_000_000)
    gauge = energy_gauge(tmp_path)
    assert gauge is not None
    counter(tmp_path, 0, 7_500_000)
    assert gauge.joules() == 2.5
    assert "RAPL" in gauge.source


def test_a_counter_that_began_again_is_continued() -> None:
    readings = iter([90.0, 20.0])
    assert Gauge("test", lambda: next(readings), wraps_at=100.0).joules() == 30.0


def test_a_machine_without_a_counter_tells_nothing(tmp_path: Path) -> None:
    assert energy_gauge(tmp_path / "none") is None
    counter(tmp_path, 0, 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy_gauge(tmp_path) is None


HOLDING = """
import time
import numpy as np
from edge_ravlm.runtime.bench.meter import Meter, resident_mb

before = resident_mb()
with Meter() as meter:
    held = np.ones(40_000_000, np.uint8)
    while time.process_time() - meter._cpu < 0.02:
        held += 1
print(meter.spent.rss_mb - before[0], meter.spent.anonymous_mb - before[1], meter.spent.cpu_seconds)
"""


def test_memory_that_is_held_counts_and_processor_time_too() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, check=True)
    rss, anonymous, cpu_seconds = map(float, done.stdout.split())
    assert 38 < anonymous <= rss + 1 < 60
    assert cpu_seconds >= 0.02
