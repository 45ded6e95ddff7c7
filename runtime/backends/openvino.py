"""OpenVINO on the CPU, for image models: taken where it was measured to be the faster one (see ``choice``)."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.cache import cache_folder
from edge_ravlm.errors import EngineError, UsageError, needs_extra
from edge_ravlm.files import write_file
from edge_ravlm.machine import machine
from edge_ravlm.manifest import Model

_log = logging.getLogger(__name__)


_SUM_BYTES = 32
"""Of the SHA-256 in front of what is kept."""


class OpenVinoSession:
    """One model in OpenVINO, compiled for each size of input that comes: for fixed sizes it makes the fastest code.

    Compiling takes a second, so what was compiled is kept in the cache folder, by model, processor and version.

    Args:
        model: ONNX.
        spec: its entry in the manifest.
        threads: CPU threads for one run; 0 leaves the choice to OpenVINO.
        **properties: more of OpenVINO's.
    """

    name = "openvino"

    def __init__(self, model: bytes, spec: Model, threads: int, **properties: Any) -> None:
        with needs_extra("openvino"):
            import openvino  # noqa: PLC0415  # a second's import, and not everybody's

        self._library: Any = openvino
        self._core: Any = openvino.Core()
        self._model: bytes | None = model
        self._file = spec.file
        self._properties = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, **properties}
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        here = msgspec.json.encode([openvino.__version__, machine(), self._properties])
        self._id = hashlib.sha256(model + here).hexdigest()
        self._compiled: dict[tuple[tuple[int, ...], ...], _Compiled] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, model: bytes, spec: Model, threads: int, _bundle: Bundle | None = None) -> OpenVinoSession:
        """See ``Backend.open``; a model that OpenVINO cannot read is found at the first run, whose sizes it needs."""
        return cls(model, spec, threads)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """See ``Session.run``.

        Raises:
            UsageError: closed.
            EngineError: OpenVINO cannot run this model.
        """
        compiled = self._for(feeds)
        with compiled.request() as request:
            request.infer({name: self._library.Tensor(value, shared_memory=True) for name, value in feeds.items()})
            return [np.array(request.get_tensor(name).data) for name in outputs]

    def close(self) -> None:
        """See ``Session.close``."""
        with self._lock:
            self._model = None
            self._compiled.clear()

    def _for(self, feeds: Mapping[str, NDArray[Any]]) -> _Compiled:
        sizes = tuple(value.shape for value in feeds.values())
        with self._lock:
            if self._model is None:
                raise UsageError("model", expected="an open one", got="a closed one", do="load the bundle again")
            if sizes not in self._compiled:
                try:
                    self._compiled[sizes] = _Compiled(self._kept({n: v.shape for n, v in feeds.items()}))
                except RuntimeError as error:
                    raise EngineError(
                        f"model '{self._file}'",
                        expected=f"one that OpenVINO {self._library.__version__} runs",
                        got=" ".join(str(error).split())[:200],
                        do="set EDGE_RAVLM_BACKEND=onnxruntime",
                    ) from error
            return self._compiled[sizes]

    def _kept(self, sizes: Mapping[str, tuple[int, ...]]) -> Any:
        """Compiled now or before."""
        name = hashlib.sha256((self._id + repr(sorted(sizes.items()))).encode()).hexdigest()[:32]
        file = cache_folder() / "openvino" / f"{name}.blob"
        with suppress(OSError, RuntimeError):  # it is not there, or another OpenVINO's
            kept = file.read_bytes()
            blob = kept[_SUM_BYTES:]
            if hashlib.sha256(blob).digest() == kept[:_SUM_BYTES]:  # a damaged one would compute something else
                return self._core.import_model(blob, "CPU", self._properties)
        model = self._core.read_model(self._model)
        model.reshape({name: list(size) for name, size in sizes.items()})
        compiled = self._core.compile_model(model, "CPU", self._properties)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            blob = compiled.export_model().getvalue()
            write_file(file, hashlib.sha256(blob).digest() + blob)
        except OSError as error:
            _log.info("%s: not kept, it will be compiled again the next time; %s", file, error)
        return compiled


class _Compiled:
    """A compiled model and its idle requests; each runs one at a time."""

    def __init__(self, model: Any) -> None:
        self._model, self._idle = model, list[Any]()

    @contextmanager
    def request(self) -> Iterator[Any]:
        """One that nobody else has."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            yield request
        finally:
            self._idle.append(request)
