"""What many answers came to."""

from __future__ import annotations

import pytest

from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.apps import account
from edge_ravlm.runtime.apps.account import Account


def answer(total_ms: float, level: Level = Level.RETRIEVED) -> Answer:
    return Answer("yes", 0.9, level, (), Latency({}, total_ms, 100.0), 0.0)


def test_an_account_adds_up() -> None:
    figures = Account([answer(10), answer(20), answer(90, Level.CACHED), answer(110)]).as_dict(100.0)
    assert figures == {
        "levels": {"cached": 1, "retrieved": 3},
        "latency_ms": {"p50": 55.0, "p99": pytest.approx(109.4)},
        "budget_ms": 100.0,
        "deadline_misses": 1,
    }


def test_an_account_of_nothing_has_no_latency() -> None:
    assert Account().as_dict(40.0) == {"levels": {}, "latency_ms": None, "budget_ms": 40.0, "deadline_misses": 0}


def test_an_account_of_a_watch_without_an_end_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "RECENT", 3)
    kept = Account()
    for total_ms in (500.0, 1.0, 2.0, 3.0):
        kept.add(answer(total_ms))
    assert (kept.answers, kept.misses) == (4, 1), "counts are of all answers"
    assert kept.latency_ms() == {"p50": 2.0, "p99": pytest.approx(2.98)}, "percentiles of the newest"
