"""Did it become slower, or worse? Two results of one benchmark, question by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.errors import DataError
from edge_ravlm.runtime.bench.outcome import Outcome, Record

_DRAWS = 2000
_TAILS = (0.005, 0.995)
_FEWEST = 20
"""Questions that both asked; fewer tell nothing."""


Floats = NDArray[np.float64]


class Change(msgspec.Struct, frozen=True):
    """One figure of both.

    Attributes:
        figure: its name.
        change: the second's over the first's for times, their difference for rates.
        low, high: of the change, bounds of its 99 % interval (paired bootstrap over questions, Efron 1979).
        worse: whether even the better bound is worse than the tolerance allows.
    """

    figure: str
    change: float
    low: float
    high: float
    worse: bool


def compare(before: Outcome, after: Outcome, tolerance: float = 0.1) -> list[Change]:
    """What changed beyond noise.

    Times are compared as multiples of the yardstick, a fixed piece of work that was measured beside them: a machine
    whose speed changed, or another one, is not taken for a change of the software. That is exact only as far as the
    yardstick and the answers change alike; ``tolerance`` has to allow for the rest.

    Args:
        before: the first result.
        after: the second.
        tolerance: by which share times may grow, and accuracy fall, unnoticed.

    Raises:
        DataError: they are not of the same scenario, or have too few questions in common.
    """
    if before.scenario != after.scenario:
        raise DataError(
            "benchmark results",
            expected=f"two of scenario {before.scenario}",
            got=f"one of {after.scenario}",
            do="compare like with like",
        )
    old, new = _by_sample(before.records), _by_sample(after.records)
    both = sorted(old.keys() & new.keys())
    if len(both) < _FEWEST:
        raise DataError(
            "benchmark results",
            expected=f"{_FEWEST} questions or more that both asked",
            got=str(len(both)),
            do="run both longer, on the same clip",
        )
    drawn = np.random.default_rng(0).integers(len(both), size=(_DRAWS, len(both)))

    def values(of: Callable[[Sequence[Record]], float]) -> tuple[Floats, Floats]:
        first, second = (np.array([of(by[name]) for name in both]) for by in (old, new))
        return first, second

    changes = [_time("latency", *values(lambda of: _median([r.ms / r.yardstick_ms for r in of])), drawn, tolerance)]
    for stage in _stages(old, new, both):
        spent = values(lambda of, s=stage: _median([r.stages_ms[s] / r.yardstick_ms for r in of]))  # type: ignore[misc]  # a lambda's default
        changes.append(_time(stage, *spent, drawn, tolerance))
    if all(record.right is not None for by in (old, new) for name in both for record in by[name]):
        rates = values(lambda of: float(np.mean([bool(r.right) for r in of])))
        changes.append(_rate("accuracy", *rates, drawn, tolerance))
    return changes


def _time(figure: str, first: Floats, second: Floats, drawn: NDArray[np.int64], tolerance: float) -> Change:
    """The median over the questions of how many times as long each took."""
    ratios = np.log(second / first)
    low, high = np.exp(np.quantile(np.median(ratios[drawn], axis=1), _TAILS))
    return Change(figure, float(np.exp(np.median(ratios))), float(low), float(high), bool(low > 1 + tolerance))


def _rate(figure: str, first: Floats, second: Floats, drawn: NDArray[np.int64], tolerance: float) -> Change:
    """How much more often each question was answered right, in the mean."""
    effect = second - first
    low, high = np.quantile(effect[drawn].mean(axis=1), _TAILS)
    return Change(figure, float(effect.mean()), float(low), float(high), bool(high < -tolerance))


def differences(before: Outcome, after: Outcome) -> list[str]:
    """What of the settings is not the same, in words."""
    keys = [*before.setting, *(key for key in after.setting if key not in before.setting)]
    return [
        f"{key}: {_shown(before.setting.get(key))} -> {_shown(after.setting.get(key))}"
        for key in keys
        if before.setting.get(key) != after.setting.get(key)
    ]


def _by_sample(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.sample].append(record)
    return found


def _stages(old: dict[str, list[Record]], new: dict[str, list[Record]], both: Sequence[str]) -> list[str]:
    """Those that every answer of both went through."""
    every = [record.stages_ms for by in (old, new) for name in both for record in by[name]]
    return [stage for stage in every[0] if all(stage in spent and spent[stage] > 0 for spent in every)]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _shown(value: Any) -> str:
    return "nothing" if value is None else msgspec.json.encode(value).decode()
