"""What a benchmark came to: figures with all that they depend on, as a file that two runs can be compared by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_ravlm.errors import DataError
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.bench.meter import Spent

QUANTILES = (50.0, 90.0, 99.0, 99.9)
FORMAT = 1


class Record(msgspec.Struct, frozen=True):
    """One answer.

    Attributes:
        sample: which question about which frame.
        ms: from the question, or the frame's capture, to the answer.
        yardstick_ms: what the same fixed work took at about that time; a machine's speed changes.
        level: how it was reached.
        right: whether it is true; None where nothing is.
        stages_ms: where the time went.
    """

    sample: str
    ms: float
    yardstick_ms: float
    level: str
    right: bool | None
    stages_ms: dict[str, float] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark's result.

    Attributes:
        scenario: which.
        valid: whether it may be quoted as what its scenario promises; ``because`` says why not.
        setting: machine, libraries, bundle, flavour, threads.
        quality: of this very configuration.
        figures: by name, each with its unit in the name.
        records: of every answer.
        spent: processor, memory, energy.
    """

    scenario: str
    valid: bool
    because: str
    setting: dict[str, Any]
    quality: dict[str, Any]
    figures: dict[str, Any]
    records: list[Record]
    spent: Spent
    format: int = FORMAT

    def summary(self) -> dict[str, Any]:
        """Everything but the single answers."""
        plain = msgspec.to_builtins(self)
        del plain["records"]
        return dict(plain)


def record(sample: str, answer: Answer, right: bool | None, yardstick_ms: float) -> Record:
    """Of an answer."""
    latency = answer.latency
    return Record(sample, latency.total_ms, yardstick_ms, answer.level.value, right, latency.stages_ms)


def write(outcome: Outcome) -> bytes:
    """For a file; ``read`` reads it."""
    return msgspec.json.format(msgspec.json.encode(outcome), indent=0)


def read(path: Path) -> Outcome:
    """What ``write`` made.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outcome)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"benchmark result '{path}'",
            expected="a file that `edge-ravlm bench … --json` wrote",
            got=getattr(error, "strerror", None) or str(error),
            do="run the benchmark again",
        ) from None


def percentiles(spent_ms: Sequence[float]) -> dict[str, float]:
    """``p50`` … ``p99_9`` in the unit of the values."""
    found = np.percentile(spent_ms, QUANTILES)
    return {
        f"p{f'{quantile:g}'.replace('.', '_')}": round(float(value), 3)
        for quantile, value in zip(QUANTILES, found, strict=True)
    }


def stages(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Percentiles of each stage, in ms, over the answers that went through it."""
    names = dict.fromkeys(name for record in records for name in record.stages_ms)
    return {name: percentiles([r.stages_ms[name] for r in records if name in r.stages_ms]) for name in names}


def levels(records: Sequence[Record]) -> dict[str, float]:
    """Share of the answers that were reached at each level."""
    counts = Counter(record.level for record in records)
    return {level: round(count / len(records), 4) for level, count in counts.most_common()}


def accuracy(records: Sequence[Record]) -> float | None:
    """Share of the answers that are true, of those where something is; None without any."""
    known = [record.right for record in records if record.right is not None]
    return round(sum(known) / len(known), 4) if known else None
