"""Backends: what runs a model. One file each, the same three methods, one line in the registry below."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from edge_ravlm.manifest import Model

BACKENDS = {"onnxruntime": "edge_ravlm.runtime.backends.onnxruntime:OnnxRuntimeSession"}
"""Backend name in the manifest -> the class, imported on first use."""

FALLBACK = "onnxruntime"

_log = logging.getLogger(__name__)


class Session(Protocol):
    """A model ready to run."""

    @classmethod
    def open(cls, model: bytes, spec: Model, threads: int) -> Session:
        """Load a model.

        Args:
            model: the file's bytes, hash already checked.
            spec: how it has to be run, from the manifest.
            threads: CPU threads for one run; 0 leaves the choice to the backend.
        """

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """Run once; the arrays returned are the caller's. May be called from several threads."""

    def close(self) -> None:
        """Release the model; harmless when closed already. ``run`` must not be called again."""


def open_session(model: bytes, spec: Model, threads: int = 0) -> Session:
    """A session of the model's backend, or of ONNX Runtime on the CPU where that backend is not to be had."""
    name = spec.backend if spec.backend in BACKENDS else FALLBACK
    if name != spec.backend:
        _log.warning("model '%s': no %s backend here, running it in %s on the CPU", spec.file, spec.backend, name)
    module, _, kind = BACKENDS[name].partition(":")
    return cast(type[Session], getattr(import_module(module), kind)).open(model, spec, threads)
