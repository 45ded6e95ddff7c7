"""What the runtime answers: a sentence, how sure it is, what it rests on, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

UNKNOWN = "I don't know"


class Level(str, Enum):
    """How an answer was reached; later levels cost more.

    ``cached`` is the last answer, as nothing moved since; ``held`` is the last answer of the same camera although
    something moved, as no time was left to look again; ``retrieved`` is a vote of the memories; ``generated`` is the
    fusion decoder's words from question, memories and picture.
    """

    CACHED = "cached"
    HELD = "held"
    RETRIEVED = "retrieved"
    GENERATED = "generated"

    def __str__(self) -> str:
        return self.value  # Python 3.10 and 3.12 differ on what an f-string shows


@dataclass(frozen=True, slots=True)
class Evidence:
    """A memory that an answer rests on.

    Attributes:
        id: the entry.
        text: what it says.
        score: cosine between its picture and the frame's (for memories without a picture, of the texts).
    """

    id: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time went, in milliseconds.

    Attributes:
        stages_ms: by stage; a stage that did not run is absent.
        total_ms: from the frame's capture to the answer, waiting included.
        budget_ms: what was allowed.
    """

    stages_ms: dict[str, float]
    total_ms: float
    budget_ms: float

    @property
    def met(self) -> bool:
        """Whether the answer came within the budget."""
        return self.total_ms <= self.budget_ms


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one question about one frame.

    Attributes:
        text: the answer, or "I don't know".
        confidence: 0 to 1; calibrated at export on composed scenes. 0 when nothing was taught about the question, or
            nothing that the picture looks like.
        level: how it was reached.
        evidence: the memories it rests on, best first; empty when nothing fits.
        latency: what it cost.
        frame_time: ``captured_at`` of the frame it was computed from (``time.monotonic()`` seconds); for a cached
            or held answer that is an earlier frame.
        reason: why there is no answer, else empty.
        complete: whether it was written to its end; only a generated one can be cut off, by its budget or its length.
    """

    text: str
    confidence: float
    level: Level
    evidence: tuple[Evidence, ...]
    latency: Latency
    frame_time: float
    reason: str = ""
    complete: bool = True

    @property
    def abstained(self) -> bool:
        """Whether the runtime said that it does not know."""
        return bool(self.reason)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        plain["level"] = self.level.value
        plain["abstained"] = self.abstained
        plain["latency"]["met"] = self.latency.met
        return plain
