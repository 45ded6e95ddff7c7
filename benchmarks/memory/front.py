"""Who dominates whom between recall and latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One operating point of a system.

    Attributes:
        setting: its ef, nprobe or expansion; 0 for an exact search.
        recall10: against brute force.
        p50_ms: of one search on one thread.
        p99_ms: likewise.
        searches: how many were timed.
    """

    setting: int
    recall10: float
    p50_ms: float
    p99_ms: float
    searches: int


def dominates(one: Point, other: Point) -> bool:
    """Whether it finds as much or more, and is faster both in the middle and at the end."""
    return one.recall10 >= other.recall10 and one.p50_ms < other.p50_ms and one.p99_ms < other.p99_ms


def dominators(ours: Point, peers: Mapping[str, Sequence[Point]]) -> dict[str, Point]:
    """The peers that dominate ours somewhere, each with its fastest point that does."""
    found = {name: [point for point in points if dominates(point, ours)] for name, points in peers.items()}
    return {name: min(points, key=lambda point: point.p50_ms) for name, points in found.items() if points}


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other dominates, by ascending recall."""
    best = [point for point in points if not any(dominates(other, point) for other in points)]
    return sorted(best, key=lambda point: point.recall10)
