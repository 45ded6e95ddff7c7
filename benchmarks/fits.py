"""Which law a row of measurements follows: a straight line or a power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FLAT = 1.05
"""What grows by less than this over the whole range is called flat."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A law fitted to measurements.

    Attributes:
        model: ``linear`` is y = offset + rate * x, ``power`` is y = offset * x ** rate.
        offset, rate: its constants.
        r2: share of the variance of log y that it explains, for both models alike; 1 where y does not vary at all.
        grows: its value at the largest x over that at the smallest.
    """

    model: Literal["linear", "power"]
    offset: float
    rate: float
    r2: float
    grows: float

    def at(self, x: ArrayLike) -> Floats:
        """Its values."""
        return _values(self.model, self.offset, self.rate, np.asarray(x, np.float64))

    def says(self, x: str, y: str) -> str:
        """In words, for instance ``1.2 ms per token``.

        Args:
            x: one of what x counts.
            y: the unit of y.
        """
        if 1 / FLAT < self.grows < FLAT:
            return f"flat ({self.grows:.2f} times over the range)"
        if self.model == "power":
            return f"{self.offset:.3g} {y} * n^{self.rate:.2f}"
        return f"{self.rate:.3g} {y} per {x}, from {self.offset:.3g} {y}"

    def row(self, x: str, y: str) -> dict[str, Any]:
        """For machines; constants carry their units. Arguments are those of ``says``."""
        linear = self.model == "linear"
        constants: dict[str, Any] = (
            {"slope": self.rate, "slope_unit": f"{y} per {x}", "intercept": self.offset, "intercept_unit": y}
            if linear
            else {"exponent": self.rate, "factor": self.offset, "factor_unit": f"{y} at one {x}"}
        )
        return {"model": self.model, **constants, "r2": self.r2, "grows": self.grows, "says": self.says(x, y)}


def fitted(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The better of both models; errors count relative to y, so that small values weigh as much as large ones.

    Args:
        x: at least two that differ, above zero.
        y: as many, above zero.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    slope, intercept = np.polyfit(xs, ys, 1, w=1 / ys)
    exponent, factor = np.polyfit(np.log(xs), np.log(ys), 1)
    found = [_fit("linear", intercept, slope, xs, ys), _fit("power", np.exp(factor), exponent, xs, ys)]
    return max(found, key=lambda fit: fit.r2)


def _fit(model: Literal["linear", "power"], offset: float, rate: float, x: Floats, y: Floats) -> Fit:
    predicted = _values(model, offset, rate, x)
    if predicted.min() <= 0:  # no law for what is above zero
        return Fit(model, float(offset), float(rate), -np.inf, np.nan)
    variance = ((np.log(y) - np.log(y).mean()) ** 2).sum()
    missed = ((np.log(y) - np.log(predicted)) ** 2).sum()
    r2 = 1.0 if variance < 1e-12 else 1 - missed / variance
    grows = predicted[x.argmax()] / predicted[x.argmin()]
    return Fit(model, float(offset), float(rate), float(r2), float(grows))


def _values(model: str, offset: float, rate: float, x: Floats) -> Floats:
    return offset + rate * x if model == "linear" else offset * x**rate
