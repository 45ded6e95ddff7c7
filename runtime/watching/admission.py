"""How a watch is asked, and before an app starts what it cannot keep up with or will never say."""

from __future__ import annotations

import statistics
import time

import numpy as np

from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import UNKNOWN, Answer
from edge_ravlm.runtime.memory import Where
from edge_ravlm.runtime.pipeline import Asked, Ravlm
from edge_ravlm.runtime.questions import gist, scope_of
from edge_ravlm.runtime.watching.settings import AppSettings, WatchSettings


def asked_of(watch: WatchSettings, frame: Frame, budget_ms: float) -> Asked:
    """A watch's question about a frame."""
    where = Where(tags=watch.tags) if watch.tags else None
    return Asked(frame, watch.question, watch.looked_at, where, budget_ms, watch.hops if watch.generate else 0)


def ask(ravlm: Ravlm, watch: WatchSettings, frame: Frame, budget_ms: float) -> Answer:
    """The answer to a watch's question about a frame."""
    asked = asked_of(watch, frame, budget_ms)
    return ravlm.ask(
        frame,
        asked.question,
        region=asked.region,
        where=asked.where,
        budget_ms=budget_ms,
        generate=watch.generate or None,
        hops=watch.hops,
        hold=False,
    )


def admission(settings: AppSettings, ravlm: Ravlm) -> list[str]:
    """Sentences about watches that cannot be kept up with.

    Args:
        settings: of the app.
        ravlm: opened with its bundle and memory; every question is asked a few times about an empty picture. What
            there is no time for, where there are hundreds, is taken to cost what others do.
    """
    costs: dict[str, float] = {}
    tried: dict[bool, list[float]] = {False: [], True: []}
    give_up = time.monotonic() + _TRYING_S
    for watch in settings.watches:
        alike = tried[watch.generate]
        if not alike or time.monotonic() < give_up:
            alike.append(_cost_ms(ravlm, watch))
            costs[watch.name] = alike[-1]
        else:
            costs[watch.name] = statistics.median(alike)
    found, busy = [], 0.0
    for camera in settings.cameras:
        mine = [watch for watch in settings.watches if watch.camera == camera.name]
        each = sum(costs[watch.name] for watch in mine)
        budget_ms = min((settings.watch(watch).budget_ms for watch in mine), default=float("inf"))
        rates = [min(camera.fps or _USUAL_FPS, 1e3 / watch.every_ms if watch.every_ms else 1e9) for watch in mine]
        busy += sum(costs[watch.name] * rate for watch, rate in zip(mine, rates, strict=True)) / 1e3
        if each > budget_ms:
            found.append(
                f"camera '{camera.name}': {len(mine)} watches need {each:.0f} ms a frame, the budget is "
                f"{budget_ms:.0f} ms; raise budget_ms, or ask less."
            )
    if busy > 1:
        found.append(
            f"{len(settings.watches)} watches of {len(settings.cameras)} cameras need {busy:.1f} times what this "
            "machine has: answers will be held and grow older; lower fps, or raise every_ms."
        )
    return found


def unsaid(settings: AppSettings, ravlm: Ravlm) -> list[str]:
    """Sentences about ``answers`` of watches that no memory in their scope gives, as where one is misspelt.

    Args:
        settings: of the app.
        ravlm: opened with its memory; one that would take seconds to read is not looked through.
    """
    found = []
    known: dict[Where, set[str]] = {}
    for watch in settings.watches:
        scope = scope_of(Where(tags=watch.tags), watch.looked_at)
        if watch.generate or not watch.answers:
            continue
        if scope not in known:
            if ravlm.memory.count(scope) > _MOST_READ:
                continue
            known[scope] = {gist(text) for text in ravlm.memory.said(scope)} | {gist(UNKNOWN)}
        found += [
            f"watch '{watch.name}': no memory answers '{text}', so it is no event; correct `answers`, or teach it."
            for text in watch.answers
            if gist(text) not in known[scope]
        ]
    return found


_USUAL_FPS = 25.0
_MOST_READ = 20_000
_TRIED, _TRYING_S = 3, 3.0


def _cost_ms(ravlm: Ravlm, watch: WatchSettings) -> float:
    """The median of asking it about a grey picture that its region fits into, without what only spare time is for."""
    region = watch.looked_at
    points = region.points if region is not None else ((640, 480),)
    size = (max(480, *(y for _, y in points)), max(640, *(x for x, _ in points)), 3)
    spent = []
    for number in range(_TRIED):
        picture = np.full(size, 60 + 60 * number, np.uint8)  # never the same twice: nothing comes from the cache
        began = time.perf_counter()
        answer = ask(ravlm, watch, Frame(picture), 1e6)
        spent.append((time.perf_counter() - began) * 1e3 - answer.latency.stages_ms.get("second_look", 0.0))
    return statistics.median(spent)
