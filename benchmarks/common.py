"""What every benchmark says beside its figures: machine, libraries, bundle and how good that bundle is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_ravlm.bundle import Bundle
from edge_ravlm.console import complain
from edge_ravlm.machine import libraries, machine


def setting(bundle: Bundle, flavor: str, threads: int) -> dict[str, Any]:
    """Where and with what the figures were taken; `quality` is what the gate measured with it."""
    return {
        "machine": machine(),
        "threads": threads,
        "precision": f"INT8 ({flavor})",
        "libraries": libraries(),
        "bundle_sha256": bundle.sha256,
        "quality": msgspec.to_builtins(bundle.manifest.parity.get(flavor)),
    }


class Bystanders:
    """How much of the processors other programs take while figures are taken: with company those mean little."""

    def __init__(self) -> None:
        self._clock, self._busy, self._own = _now()

    def share(self) -> float:
        """Since this was made, as a fraction of all processors' time; child processes that ended are not others."""
        clock, busy, own = _now()
        available = (clock - self._clock) * (os.cpu_count() or 1)
        others = (busy - self._busy) - (own - self._own)
        return round(min(1.0, max(0.0, others / available)), 3)


QUIET = 0.05
"""Largest share of the processors that others may take in figures worth quoting."""


def warn_of_company(share: float) -> None:
    """Complain about figures that were taken beside other programs."""
    if share > QUIET:
        complain(f"other programs took {share:.0%} of the processors: do not quote these figures.")


def _now() -> tuple[float, float, float]:
    """Seconds on a clock, seconds that all processors were busy or lent away, and this process's part of them."""
    user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, sum(os.times()[:4])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


_DRAWS = 2_000
"""Of a bootstrap."""


def paired_ratio(others: Sequence[float], ours: Sequence[float]) -> tuple[float, list[float]]:
    """The others' median divided by ours, and its 95 % confidence interval.

    Frames are drawn with replacement, each with what both took for it, so that a moment in which the machine was slow
    for both is no difference between them.

    Both are of the same frames in the same order.
    """
    pairs = np.array([others, ours], np.float64)
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(_DRAWS, pairs.shape[1]))
    medians = np.median(pairs[:, drawn], axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    theirs, own = np.median(pairs, axis=1)
    return round(float(theirs / own), 3), [round(float(low), 3), round(float(high), 3)]


def setting_line(about: Mapping[str, Any]) -> str:
    """What ``setting`` says, as one line below a table."""
    where, quality = about["machine"], about["quality"]
    versions = ", ".join(f"{name} {found}" for name, found in about["libraries"].items() if found)
    agreement = "not measured" if quality is None else f"cosine to FP32 {quality['cosine_mean']:.4f}"
    return (
        f"{where['cpu']}, {where['cores']} cores ({' '.join(where['cpu_flags'])}), {about['threads']} threads, "
        f"{about['precision']}; {versions}; bundle {about['bundle_sha256'][:12]}, {agreement}"
    )
