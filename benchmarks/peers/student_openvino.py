"""Our student in OpenVINO: FP32, and the INT8 model that we ship."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.encoders import ImageEncoder
from peers.ours import Pipeline
from peers.protocol import Job
from peers.student import OtherRavlm, embedder, full_precision

openvino: Any = import_module("openvino")  # in an environment of its own, so that type checkers do not see it


class OpenVinoSession:
    """A ``Session`` of OpenVINO on the CPU, tuned for latency.

    Args:
        model: ONNX.
        threads: CPU threads.
        **properties: more of OpenVINO's.
    """

    def __init__(self, model: bytes, threads: int, **properties: Any) -> None:
        self._core = openvino.Core()
        self._model = model
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            **properties,
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    @classmethod
    def open(cls, model: bytes, _spec: Model, threads: int, _bundle: Bundle | None = None) -> OpenVinoSession:
        """See ``Session.open``."""
        return cls(model, threads)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """See ``Session.run``."""
        (pixels,) = feeds.values()
        request = self._request(pixels.shape)
        request.infer({name: openvino.Tensor(value, shared_memory=True) for name, value in feeds.items()})
        return [np.array(request.get_tensor(name).data) for name in outputs]

    def _request(self, shape: tuple[int, ...]) -> Any:
        """Compiled for each size of picture: of fixed sizes OpenVINO makes the fastest code."""
        if shape not in self._requests:
            model = self._core.read_model(self._model)
            model.reshape(list(shape))
            self._requests[shape] = self._core.compile_model(model, "CPU", self._properties).create_infer_request()
        return self._requests[shape]

    def close(self) -> None:
        """See ``Session.close``."""
        self._requests.clear()


class OpenVinoEncoder(ImageEncoder):
    """The product's encoder on the same INT8 model in OpenVINO; golden frames prove that it computes the same."""

    def __init__(self, bundle: Bundle, flavor: str, threads: int) -> None:
        super().__init__(bundle, flavor, threads)
        self._session.close()
        spec = bundle.manifest.flavor(flavor).image
        self._session = OpenVinoSession.open(bundle.read(spec.file), spec, threads)
        self._replay(bundle)


def openvino_fp32(job: Job) -> Pipeline:
    """The student in full precision."""
    graph = Path(job.graphs["student"]).read_bytes()
    # Asked for, as processors with BF16 compute in that otherwise.
    return full_precision(job, embedder(OpenVinoSession(graph, job.threads, INFERENCE_PRECISION_HINT="f32")))


def openvino_int8(job: Job) -> Pipeline:
    """The model that ships."""
    return Pipeline(OtherRavlm(OpenVinoEncoder, job.threads), job)
