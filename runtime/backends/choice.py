"""Which library runs a CPU's image model: the one that was faster here, measured once and remembered."""

from __future__ import annotations

import hashlib
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.cache import cache_folder
from edge_ravlm.errors import UsageError
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import FALLBACK, Session, backend_named, open_session

AUTO, OPENVINO = "auto", "openvino"
WISHES = (AUTO, FALLBACK, OPENVINO)

VARIABLE = "EDGE_RAVLM_BACKEND"
"""Environment variable that says which of WISHES it is to be, where nobody says otherwise."""

_TURNS, _PAUSE_S = 15, 0.02
"""Measured so often, and at a camera's pace: without pauses OpenVINO took 0.9 of ONNX Runtime's time on one machine,
where its threads have to be woken for every frame 1.5."""

_WORTH = 0.95
"""A change has to bring so much: what takes longer than this share of ONNX Runtime's time is left alone."""

_ALIKE = 0.98
"""Cosine between what the two compute."""

_LATER_S = 1.0
"""Seconds after which the other library is looked at, so that the first answers do not wait for it."""

Feeds = Mapping[str, NDArray[Any]]

_log = logging.getLogger(__name__)


def open_fastest(
    model: bytes,
    spec: Model,
    threads: int,
    bundle: Bundle,
    feeds: Sequence[Feeds],
    output: str,
    wish: str | None = None,
) -> Session:
    """Open an image model where it runs fastest.

    Args:
        model: see ``Backend.open``, as for the next three.
        spec: its entry in the manifest.
        threads: CPU threads.
        bundle: where it came from.
        feeds: one picture of every size that will come, on which both have to agree; the first is measured with.
        output: float32 [1, dim], what has to come out alike.
        wish: one of WISHES; None is what VARIABLE says, else ``auto``: ONNX Runtime at first, and OpenVINO from the
            moment on at which it is ready, where it is installed and wins.

    Raises:
        UsageError: there is no such backend.
        MissingExtra: OpenVINO is wanted and not installed.
    """
    wish = os.environ.get(VARIABLE, AUTO) if wish is None else wish
    if wish not in WISHES:
        raise UsageError("backend", expected=", ".join(WISHES), got=f"'{wish}'", do=f"correct it, or unset {VARIABLE}")
    if wish == OPENVINO and spec.backend == FALLBACK:
        return backend_named(OPENVINO).open(model, spec, threads, bundle)
    first = open_session(model, spec, threads, bundle)
    if wish == FALLBACK or spec.backend != FALLBACK or find_spec("openvino") is None:
        return first
    known = _Known(model, threads)
    if known.winner == FALLBACK:
        return first

    def open_second() -> Session | None:
        second = backend_named(OPENVINO).open(model, spec, threads, bundle)
        # The golden frames were seen by the first one only: the second has to agree with it at every start. It compiles
        # for each size now, and not while somebody waits for an answer.
        pairs = [[session.run(of_size, (output,))[0][0] for session in (first, second)] for of_size in feeds]
        alike = float(np.min([mine @ theirs for mine, theirs in pairs]))
        if known.winner is None:
            known.keep(_faster(first, second, feeds[0], output, spec.file))
        if known.winner == OPENVINO and alike >= _ALIKE:
            return second
        if alike < _ALIKE:
            _log.warning("model '%s': OpenVINO computes something else here (cosine %.3f), left out", spec.file, alike)
        second.close()
        return None

    return _Changing(first, open_second)


def settle(session: Session) -> None:
    """Wait until a session from ``open_fastest`` is the one that it will stay: a benchmark does not measure two."""
    if isinstance(session, _Changing):
        session.settle()


class _Changing:
    """A session that becomes another one as soon as that is ready.

    Args:
        first: what runs until then; closed with this one.
        open_second: called after a while by a thread of its own; None leaves the first in place.
    """

    def __init__(self, first: Session, open_second: Callable[[], Session | None]) -> None:
        self._first, self._now, self._open_second = first, first, open_second
        self._closed = False
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._change, name="backend")
        self._thread.start()

    @property
    def name(self) -> str:
        """Of the one that runs now."""
        return self._now.name

    @property
    def processors(self) -> tuple[int, ...]:
        """See ``OnnxRuntimeSession``; the second one's threads find their own."""
        return tuple(getattr(self._first, "processors", ()))

    def run(self, feeds: Feeds, outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """See ``Session.run``."""
        return self._now.run(feeds, outputs)

    def close(self) -> None:
        """See ``Session.close``; waits for the thread."""
        self._closed = True
        self.settle()
        self._now.close()
        self._first.close()

    def settle(self) -> None:
        """Wait for the change, if there is to be one."""
        self._hurry.set()
        self._thread.join()

    def _change(self) -> None:
        self._hurry.wait(_LATER_S)
        second = None
        try:
            second = None if self._closed else self._open_second()
        except Exception as error:  # whatever ails the second one, the first goes on
            _log.warning("OpenVINO is left out: %s", " ".join(str(error).split()))
        if second is not None:  # the first stays open: somebody may be in the middle of a run
            self._now = second


class _Known:
    """What was measured before of this model, processor and these versions."""

    def __init__(self, model: bytes, threads: int) -> None:
        from edge_ravlm.machine import machine, version  # noqa: PLC0415  # brings the packages' metadata along

        here = msgspec.json.encode([machine(), version("onnxruntime"), version("openvino"), threads, _PAUSE_S])
        self._file = cache_folder() / "backends" / hashlib.sha256(model + here).hexdigest()[:32]
        self.winner: str | None = None
        with suppress(OSError, ValueError):
            said = self._file.read_text(encoding="ascii")
            self.winner = said if said in (FALLBACK, OPENVINO) else None

    def keep(self, winner: str) -> None:
        """For the next start, if the disk allows."""
        self.winner = winner
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(winner, encoding="ascii")  # cut short, it would be measured again


def _faster(first: Session, second: Session, feeds: Feeds, output: str, file: str) -> str:
    spent = [[_seconds(session, feeds, output) for session in (first, second)] for _ in range(_TURNS)]
    share = statistics.median(theirs / mine for mine, theirs in spent)
    found = OPENVINO if share <= _WORTH else FALLBACK
    _log.info("'%s' runs in %s: OpenVINO takes %.2f of the time", file, found, share)
    return found


def _seconds(session: Session, feeds: Feeds, output: str) -> float:
    time.sleep(_PAUSE_S)
    start = time.perf_counter()
    session.run(feeds, (output,))
    return time.perf_counter() - start
