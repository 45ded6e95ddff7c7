"""Scenario camera: frames come at their own pace, and every question has a deadline from its frame's capture on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.demo import Thing
from edge_ravlm.runtime.bench.outcome import Record, accuracy, levels, percentiles, record
from edge_ravlm.runtime.bench.workload import CAMERA, Workload
from edge_ravlm.runtime.bench.yardstick import Yardstick
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.watching.lanes import Told, Watch
from edge_ravlm.runtime.watching.watcher import Watcher


@dataclass(frozen=True)
class Watched:
    """What a camera's frames came to.

    Attributes:
        told: every answer in the order in which it was given.
        records: the same, as other scenarios have them.
        offered: answers that were due.
        max_queue: most that were due at once.
        guard_ms: how long before a deadline an answer was held in the end.
    """

    told: Sequence[Told]
    records: list[Record]
    offered: int
    max_queue: int
    guard_ms: float

    def figures(self) -> dict[str, Any]:
        """Misses, ages, levels and how many were right."""
        by_watch: dict[str, list[Told]] = {}
        for one in self.told:
            by_watch.setdefault(one.watch, []).append(one)
        counted = [one for of in by_watch.values() for one in of[1:]]  # there is nothing to hold before the first
        ages = sorted(one.age_frames for one in self.told)
        return {
            "miss_rate": sum(one.is_late for one in counted) / max(1, len(counted)),
            "answers": len(self.told),
            "lost": self.offered - len({(one.watch, one.index) for one in self.told}),
            "reordered": sum(a.index > b.index for of in by_watch.values() for a, b in pairwise(of)),
            "median_age_frames": statistics.median(ages),
            "p99_age_frames": ages[int(0.99 * (len(ages) - 1))],
            "max_queue": self.max_queue,
            "levels": levels(self.records),
            "accuracy": accuracy(self.records),
            "guard_ms": round(self.guard_ms, 3),
            "latency_ms": percentiles([one.ms for one in self.records]),
        }


def watch(
    ravlm: Ravlm,
    workload: Workload,
    things: Sequence[Thing],
    *,
    every_ms: float,
    budget_ms: float,
    seconds: float,
    advance: Callable[..., None] = lambda: None,
) -> Watched:
    """Be a camera that shows the clip round and round, with a watch on each of the things.

    Args:
        ravlm: taught.
        workload: its clip.
        things: of it.
        every_ms: between two frames.
        budget_ms: from a frame's capture to an answer.
        seconds: how long.
        advance: told ``completed`` frames.
    """
    watches = {Watch(thing.name, CAMERA, budget_ms): thing for thing in things}
    told, waiting = list[Told](), list[int]()
    yardstick_ms = Yardstick().ms  # once: measured meanwhile it would make frames late

    def ask(frame: Frame, of: Watch) -> Answer:
        thing = watches[of]
        return ravlm.ask(frame, thing.question, region=thing.box(), budget_ms=of.budget_ms, hold=False)

    with Watcher(ask, watches, told.append, processors=ravlm.processors) as watcher:

        def offer(frame: Frame) -> None:
            watcher.offer(CAMERA, frame)
            waiting.append(watcher.waiting)

        frames = show(workload.pictures, every_ms, seconds, offer, advance)
        watcher.close()
        guard_ms = watcher.guard_ms
    by_name = {thing.name: thing for thing in things}

    def right(one: Told) -> bool | None:
        truth = by_name[one.watch].truth(one.index % len(workload.pictures))
        return None if truth is None else one.answer.text == truth

    records = [record(f"{one.watch}@{one.index}", one.answer, right(one), yardstick_ms) for one in told]
    return Watched(told, records, frames * len(watches), max(waiting, default=0), guard_ms)


def show(
    pictures: Sequence[Pixels],
    every_ms: float,
    seconds: float,
    offer: Callable[[Frame], None],
    advance: Callable[..., None] = lambda: None,
) -> int:
    """Be the camera; returns how many frames there were."""
    began, count = time.monotonic(), int(seconds * 1e3 / every_ms)
    for index, pixels in zip(range(count), cycle(pictures), strict=False):
        wait_s = began + index * every_ms / 1e3 - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        offer(Frame(pixels, index=index, source=CAMERA))
        if index % 64 == 0:
            advance(completed=index)
    return count
