"""Backends: what runs a model. One file each, the same three methods, one line in the registry below."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import EngineError, MissingExtra
from edge_ravlm.manifest import Model

BACKENDS = {
    "onnxruntime": "edge_ravlm.runtime.backends.onnxruntime:OnnxRuntimeSession",
    "openvino": "edge_ravlm.runtime.backends.openvino:OpenVinoSession",
    "tensorrt": "edge_ravlm.runtime.backends.tensorrt:TensorRtSession",
}
"""Backend name in the manifest -> the class, imported on first use."""

FALLBACK = "onnxruntime"

_log = logging.getLogger(__name__)


class Session(Protocol):
    """A model ready to run.

    Attributes:
        name: of the backend, see BACKENDS.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """Run once; the arrays returned are the caller's. May be called from several threads."""

    def close(self) -> None:
        """Release the model; harmless when closed already. ``run`` must not be called again."""


class Backend(Session, Protocol):
    """What opens sessions of itself."""

    @classmethod
    def open(cls, model: bytes, spec: Model, threads: int, bundle: Bundle | None, /) -> Session:
        """Load a model.

        Args:
            model: the file's bytes, hash already checked.
            spec: how it has to be run, from the manifest.
            threads: CPU threads for one run; 0 leaves the choice to the backend.
            bundle: where it came from, if from one; it may hold an engine of it.

        Raises:
            MissingExtra: the backend's library is not installed; then another backend may do.
            EngineError: the backend cannot run here, or not this model; likewise.
            BundleError: the model is none.
        """


def open_session(model: bytes, spec: Model, threads: int = 0, bundle: Bundle | None = None) -> Session:
    """A session of the model's backend, or of ONNX Runtime (on the GPU if it can) where that backend cannot run it.

    The log then says why, and what to do about it. Arguments and errors are those of ``Backend.open``.
    """
    if spec.backend != FALLBACK:
        try:
            return backend_named(spec.backend).open(model, spec, threads, bundle)
        except (EngineError, MissingExtra) as reason:
            session = backend_named(FALLBACK).open(model, spec, threads, bundle)
            where = getattr(session, "provider", FALLBACK)
            _log.warning("model '%s': running it in ONNX Runtime, %s; %s", spec.file, where, str(reason))
            return session
    return backend_named(FALLBACK).open(model, spec, threads, bundle)


def backend_named(name: str) -> type[Backend]:
    """One of BACKENDS, imported."""
    module, _, kind = BACKENDS[name].partition(":")
    return cast(type[Backend], getattr(import_module(module), kind))
