"""Which library runs a CPU's image model: the one that was faster here, measured once and remembered."""

from __future__ import annotations

import hashlib
import logging
import os
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import msgspec
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.cache import cache_folder, write_whole
from edge_ravlm.errors import EngineError, UsageError
from edge_ravlm.machine import machine, version
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import FALLBACK, Session, backend_named, open_session

AUTO, OPENVINO = "auto", "openvino"
WISHES = (AUTO, FALLBACK, OPENVINO)

VARIABLE = "EDGE_RAVLM_BACKEND"
"""Environment variable that says which of WISHES it is to be, where nobody says otherwise."""

_TURNS = 15
_WORTH = 0.95
"""A change has to bring so much: what takes longer than this share of ONNX Runtime's time is left alone."""

_ALIKE = 0.98
"""Cosine between what the two compute."""

_log = logging.getLogger(__name__)


def open_fastest(
    model: bytes,
    spec: Model,
    threads: int,
    bundle: Bundle,
    feeds: Mapping[str, NDArray[Any]],
    output: str,
    wish: str | None = None,
) -> tuple[str, Session]:
    """Open an image model where it runs fastest.

    Args:
        model: see ``Session.open``, as for the next three.
        spec: its entry in the manifest.
        threads: CPU threads.
        bundle: where it came from.
        feeds: one picture to measure with.
        output: float32 [1, dim], what has to come out alike.
        wish: one of WISHES; None is what VARIABLE says, else ``auto``: OpenVINO where it is installed and wins.

    Returns:
        the backend's name and the session.

    Raises:
        UsageError: there is no such backend.
        MissingExtra: OpenVINO is wanted and not installed.
    """
    wish = os.environ.get(VARIABLE, AUTO) if wish is None else wish
    if wish not in WISHES:
        raise UsageError("backend", expected=", ".join(WISHES), got=f"'{wish}'", do=f"correct it, or unset {VARIABLE}")
    if spec.backend != FALLBACK:
        return spec.backend, open_session(model, spec, threads, bundle)
    if wish == AUTO:
        wish = FALLBACK if find_spec("openvino") is None else _faster(model, spec, threads, feeds, output)
    if wish == OPENVINO:
        return OPENVINO, backend_named(OPENVINO).open(model, spec, threads, bundle)
    return FALLBACK, open_session(model, spec, threads, bundle)


def _faster(model: bytes, spec: Model, threads: int, feeds: Mapping[str, NDArray[Any]], output: str) -> str:
    """Which of the two; measured with the first call, and again where the processor, a version or the model changed."""
    here = msgspec.json.encode([machine(), version("onnxruntime"), version("openvino"), threads])
    file = cache_folder() / "backends" / hashlib.sha256(model + here).hexdigest()[:32]
    with suppress(OSError):
        known = file.read_text(encoding="ascii")
        if known in WISHES[1:]:
            return known
    found = _measured(model, spec, threads, feeds, output)
    with suppress(OSError):
        write_whole(file, found.encode())
    return found


def _measured(model: bytes, spec: Model, threads: int, feeds: Mapping[str, NDArray[Any]], output: str) -> str:
    first, second = (backend_named(name).open(model, spec, threads, None) for name in (FALLBACK, OPENVINO))
    try:
        (mine,), (theirs,) = (session.run(feeds, (output,)) for session in (first, second))
        alike = float(mine[0] @ theirs[0])
        spent = [[_seconds(session, feeds, output) for session in (first, second)] for _ in range(_TURNS)]
    except EngineError as error:
        _log.info("%s", error)
        return FALLBACK
    finally:
        first.close()
        second.close()
    share = statistics.median(theirs / mine for mine, theirs in spent)
    wins = share <= _WORTH and alike >= _ALIKE
    found = OPENVINO if wins else FALLBACK
    _log.info("'%s' runs in %s: OpenVINO takes %.2f of the time, cosine %.4f", spec.file, found, share, alike)
    return found


def _seconds(session: Session, feeds: Mapping[str, NDArray[Any]], output: str) -> float:
    start = time.perf_counter()
    session.run(feeds, (output,))
    return time.perf_counter() - start
