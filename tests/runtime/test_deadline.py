"""The clock of an answer: it starts at capture, adds up the stages and never flatters itself."""

from __future__ import annotations

import math
import time

import pytest

from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.deadline import Deadline, Pace, check_budget


def test_the_clock_started_when_the_frame_was_captured() -> None:
    deadline = Deadline(100.0, time.monotonic() - 5.0)
    latency = deadline.latency()
    assert latency.total_ms >= 5000
    assert latency.budget_ms == 100.0
    assert not latency.met
    assert deadline.left_ms() <= -4900


def test_a_budget_with_time_left_is_met() -> None:
    deadline = Deadline(600_000.0, time.monotonic())
    assert 0 < deadline.left_ms() <= 600_000
    assert deadline.latency().met


def test_stages_are_added_up_and_fit_into_the_whole() -> None:
    deadline = Deadline(100.0, time.monotonic())
    with deadline.stage("encode"):
        sum(range(10_000))
    once = deadline.latency().stages_ms["encode"]
    with deadline.stage("encode"), deadline.stage("inside"):
        sum(range(10_000))
    latency = deadline.latency()
    assert list(latency.stages_ms) == ["encode", "inside"]
    assert latency.stages_ms["encode"] >= once + latency.stages_ms["inside"] > once
    assert latency.total_ms >= latency.stages_ms["encode"]


def test_a_stage_that_fails_is_timed_and_its_error_passes() -> None:
    deadline = Deadline(100.0, time.monotonic())
    with pytest.raises(ZeroDivisionError), deadline.stage("encode"):
        raise ZeroDivisionError
    assert deadline.latency().stages_ms["encode"] >= 0


def test_an_account_does_not_change_afterwards() -> None:
    deadline = Deadline(100.0, time.monotonic())
    early = deadline.latency()
    with deadline.stage("encode"):
        pass
    assert early.stages_ms == {}


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, -math.inf])
def test_a_budget_is_above_zero(budget: float) -> None:
    with pytest.raises(UsageError, match="milliseconds above zero"):
        check_budget(budget)
    with pytest.raises(UsageError, match="milliseconds above zero"):
        Deadline(budget, time.monotonic())


@pytest.mark.parametrize("started", [4e9, math.inf, math.nan])
def test_a_capture_on_another_clock_is_refused_instead_of_always_in_time(started: float) -> None:
    with pytest.raises(UsageError, match=r"time\.monotonic"):
        Deadline(100.0, started)


def test_a_pace_is_the_median_of_the_newest_runs_that_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, clock = Pace(), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run(seconds: float) -> None:
        with pace.run():
            clock[0] += seconds

    assert pace.ms == 0, "nothing is known yet"
    for seconds in (0.010, 5.0, 0.030):
        run(seconds)
    assert pace.ms == pytest.approx(30)
    with pytest.raises(ZeroDivisionError), pace.run():
        raise ZeroDivisionError
    assert pace.ms == pytest.approx(30)
    for _ in range(100):
        run(0.002)
    assert pace.ms == pytest.approx(2)
