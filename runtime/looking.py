"""Looking at frames: every frame and region is preprocessed and encoded once, several at once where that is quicker."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.deadline import Deadline, Paces
from edge_ravlm.runtime.encoders import ImageEncoder, Look

AFTER_LOOKING = ("search", "vote")
"""Stages of every answer that come after looking."""

TOGETHER = (4, 3, 2)
"""Numbers of pictures that may be looked at in one run, largest first."""

_KEPT, _KEPT_BYTES = 4, 1 << 27
"""Frames whose looks are kept: as many as may be looked at together, each of another camera; of large ones one."""

_TURNS, _WORTH = 7, 0.95
"""Measured so often; a picture has to take less than this share of its time alone."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """What has to be looked at.

    Attributes:
        frame, region: of it.
        by: when the answer has to be there, ``time.monotonic()`` seconds.
        glimpse: whether a glimpse is enough at first.
    """

    frame: Frame
    region: Region | None
    by: float
    glimpse: bool = False


@dataclass
class _Seen:
    """What is known of a region of a frame.

    Attributes:
        small, pixels: the encoder's input for a glimpse, and for a full look.
        glimpse: what a glimpse showed, or one with a closer look.
        look: what a full look showed, or one with a closer look.
        encode_ms: what the first of these took, where nobody has paid for it yet.
    """

    small: Pixels | None = None
    pixels: Pixels | None = None
    glimpse: Look | None = None
    look: Look | None = None
    encode_ms: float = 0.0


@dataclass
class _Kept:
    frame: Frame
    regions: dict[Region | None, _Seen] = field(default_factory=dict)


class Looking:
    """The looks at the newest frames. Safe to use from several threads.

    Args:
        encoder: looks; whoever made it closes it.
        paces: of the stages ``encode`` and ``second_look``, and of ``encode_N`` for N pictures at once.
        glimpse: whether glimpses are taken where they may be enough.

    Attributes:
        glimpses: whether they are, and the bundle has any.
    """

    def __init__(self, encoder: ImageEncoder, paces: Paces, *, glimpse: bool = False) -> None:
        self._encoder, self._paces = encoder, paces
        self.glimpses = glimpse and encoder.closer is not None
        paces.start("encode", encoder.warm_ms)
        paces.start("second_look", encoder.warm_ms)  # it is the smaller of the two
        self._numbers: tuple[int, ...] = ()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def pixels(self, frame: Frame, region: Region | None, *, glimpse: bool = False) -> Pixels:
        """The encoder's input for a full look, or for a glimpse: uint8 [1, height, width, 3]; to be read only."""
        seen = self._seen(frame, region)
        if glimpse:
            if seen.small is None:
                seen.small = self._encoder.glimpse(frame, region)
            return seen.small
        if seen.pixels is None:
            seen.pixels = self._encoder.preprocess(frame, region)
        return seen.pixels

    def first(self, frame: Frame, region: Region | None, deadline: Deadline, *, glimpse: bool) -> Look:
        """A glimpse, where that is enough at first and nothing better is there already; else the full look.

        Its stage is ``encode``, which is left out where an answer before this one has paid for it.
        """
        seen = self._seen(frame, region)
        if not glimpse or seen.look is not None:
            return self.look(frame, region, deadline)
        if seen.glimpse is None:
            pixels = self.pixels(frame, region, glimpse=True)
            with deadline.stage("encode"):
                (seen.glimpse,) = self._encoder.glimpses(pixels)
        self._pay(seen, deadline)
        return seen.glimpse

    def look(self, frame: Frame, region: Region | None, deadline: Deadline, stage: str = "encode") -> Look:
        """The full look; its stage is left out where an answer before this one has paid for it."""
        seen = self._seen(frame, region)
        if seen.look is None:
            with deadline.stage(stage):
                seen.look = self._encoder.look(self.pixels(frame, region))
        self._pay(seen, deadline)
        return seen.look

    def better(self, frame: Frame, region: Region | None, look: Look, deadline: Deadline) -> Look:
        """One that shows more than this look, if there is one and time for it; else the same.

        A closer one, or where somebody said where to look the full one after a glimpse; the stage is ``second_look``.
        """
        if region is None:
            return self.closer(frame, region, look, deadline)
        if not look.glimpse or not deadline.fits("second_look", *AFTER_LOOKING):
            return look
        return self.look(frame, region, deadline, "second_look")

    def closer(self, frame: Frame, region: Region | None, look: Look, deadline: Deadline) -> Look:
        """A closer look, if nobody said where to look and there is time; else the same."""
        if look.focus is None or region is not None or not deadline.fits("second_look", *AFTER_LOOKING):
            return look
        with deadline.stage("second_look"):
            closer = self._encoder.closer_look(frame, look)
        seen = self._seen(frame, region)
        if look.glimpse:
            seen.glimpse = closer
        else:
            seen.look = closer
        return closer

    def _pay(self, seen: _Seen, deadline: Deadline) -> None:
        """Put what ``together`` took on the account of the first answer that it serves."""
        if seen.encode_ms:
            deadline.spent("encode", seen.encode_ms)
            seen.encode_ms = 0.0

    # -- several at once ---------------------------------------------------------------------------------------

    def learn_together(self) -> dict[int, float]:
        """Find out how many pictures are looked at quicker in one run than one by one; takes some tenths of a second.

        Of glimpses, where there are any: full looks are then taken one by one. Until then, ``together`` does nothing.

        Returns:
            For each number of TOGETHER that this model takes: the time of a picture, as a share of its time alone.
        """
        self._encoder.settle()
        one = (self._encoder.glimpse if self.glimpses else self._encoder.preprocess).buffer()
        shares: dict[int, float] = {}
        for number in TOGETHER:
            pixels = np.zeros((number, *one.shape[1:]), np.uint8)
            try:
                spent = [(self._spent_ms(pixels), self._spent_ms(pixels[:1])) for _ in range(_TURNS)]
            except EdgeRavlmError as error:  # an engine for one picture at a time
                _log.info("no %d pictures at once: %s", number, error)
                continue
            shares[number] = statistics.median(many / number / alone for many, alone in spent)
            self._paces.start(f"encode_{number}", statistics.median(many for many, _ in spent))
        self._numbers = tuple(number for number, share in shares.items() if share < _WORTH)
        return shares

    def together(self, views: Sequence[View]) -> int:
        """Look at what is not known yet, several at once, where that is quicker and no deadline is lost by it.

        Returns:
            How many of the views, from the first on, are known now.
        """
        frames = {id(view.frame): view.frame.pixels.nbytes for view in views}
        if len(frames) > _KEPT or (len(frames) > 1 and sum(frames.values()) > _KEPT_BYTES):
            return 0  # they would not all be kept: each would push out what was just seen of another
        # Who needs a full look, one by one, does not wait for the glimpses of those after him.
        views = list(takewhile(lambda view: view.glimpse == self.glimpses or self._known(view), views))
        different = list({(id(view.frame), view.region): view for view in views}.values())
        while len(unknown := [view for view in different if not self._known(view)]) > 1:
            number = next((n for n in self._numbers if n <= len(unknown) and self._fit(unknown[:n])), 0)
            if not number:
                break
            self._look_at(unknown[:number])
        return next((row for row, view in enumerate(views) if not self._known(view)), len(views))

    def _known(self, view: View) -> bool:
        seen = self._seen(view.frame, view.region)
        return seen.look is not None or (view.glimpse and seen.glimpse is not None)

    def _fit(self, views: Sequence[View]) -> bool:
        """Whether all would most likely be answered in time if they were looked at in one run now."""
        after_ms = len(views) * sum(self._paces[stage].bound_ms for stage in AFTER_LOOKING)
        needed_ms = self._paces[f"encode_{len(views)}"].bound_ms + after_ms
        return (min(view.by for view in views) - time.monotonic()) * 1e3 >= needed_ms

    def _look_at(self, views: Sequence[View]) -> None:
        pixels = np.concatenate([self.pixels(view.frame, view.region, glimpse=view.glimpse) for view in views])
        began = time.perf_counter()
        with self._paces[f"encode_{len(views)}"].run():
            looks = self._run(pixels)
        each_ms = (time.perf_counter() - began) * 1e3 / len(views)
        for view, look in zip(views, looks, strict=True):
            seen = self._seen(view.frame, view.region)
            seen.encode_ms = each_ms
            if look.glimpse:
                seen.glimpse = look
            else:
                seen.look = look

    def _run(self, pixels: Pixels) -> list[Look]:
        """First looks at several pictures."""
        return self._encoder.glimpses(pixels) if self.glimpses else self._encoder.looks(pixels)

    def _spent_ms(self, pixels: Pixels) -> float:
        began = time.perf_counter()
        self._run(pixels)
        return (time.perf_counter() - began) * 1e3

    def _kept_bytes(self) -> int:
        return sum(kept.frame.pixels.nbytes for kept in self._kept.values())

    def _seen(self, frame: Frame, region: Region | None) -> _Seen:
        with self._lock:
            kept = self._kept.setdefault(id(frame), _Kept(frame))  # as long as it is kept, no other has its id
            self._kept.move_to_end(id(frame))
            while len(self._kept) > (_KEPT if self._kept_bytes() <= _KEPT_BYTES else 1):
                self._kept.popitem(last=False)
            return kept.regions.setdefault(region, _Seen())
