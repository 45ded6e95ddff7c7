"""ONNX Runtime: on the CPU the embedded default, and on a GPU what runs there without TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.processors import dealt, kept_to

_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


CPU = "CPUExecutionProvider"

GPU = ("NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider")
"""What of ONNX Runtime runs on NVIDIA's GPUs, the fastest first; what is installed may have none of them."""


class OnnxRuntimeSession:
    """One model in ONNX Runtime.

    Attributes:
        provider: what of ONNX Runtime runs most of it.
        processors: where whoever calls ``run`` is kept meanwhile, apart from the other threads; without any, anywhere.
    """

    name = "onnxruntime"

    def __init__(self, session: ort.InferenceSession, processors: Sequence[int] = ()) -> None:
        self._session: ort.InferenceSession | None = session
        self.provider = str(session.get_providers()[0])
        self.processors = tuple(processors) if self.provider == CPU else ()

    @classmethod
    def open(cls, model: bytes, spec: Model, threads: int, _bundle: Bundle | None = None) -> OnnxRuntimeSession:
        """See ``Backend.open``; raises BundleError when this ONNX Runtime cannot load the model."""
        try:
            session = ort.InferenceSession(model, session_options(spec, threads), providers=providers(spec))
        except Exception as error:
            raise BundleError(
                f"model '{spec.file}'",
                expected=f"one that ONNX Runtime {ort.__version__} loads",
                got=" ".join(str(error).split()) or type(error).__name__,
                do="upgrade onnxruntime or export the bundle for this target",
            ) from error
        return cls(session, next(iter(dealt(threads)), ()))

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """See ``Session.run``; raises UsageError once closed."""
        session = self._session
        if session is None:
            raise UsageError("model", expected="an open one", got="a closed one", do="load the bundle again")
        try:
            with kept_to(self.processors):
                return [np.asarray(result) for result in session.run(outputs, dict(feeds))]
        except Exception as error:  # other inputs or outputs than the manifest says, for instance
            raise BundleError(
                "model",
                expected=f"one that takes {', '.join(feeds)} and gives {', '.join(outputs)}",
                got=" ".join(str(error).split())[:200] or type(error).__name__,
                do="export the bundle again",
            ) from error

    def close(self) -> None:
        """See ``Session.close``."""
        self._session = None


def providers(spec: Model) -> list[str]:
    """What may run a model, in order: a GPU's model whatever this ONNX Runtime has for GPUs, then the CPU."""
    there = ort.get_available_providers() if spec.backend == "tensorrt" else ()
    return [*(name for name in GPU if name in there), CPU]


def session_options(spec: Model, threads: int) -> ort.SessionOptions:
    """How the product runs a model.

    Args:
        spec: how the model has to be run, from the manifest.
        threads: CPU threads for one run; 0 leaves the choice to ONNX Runtime.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[spec.graph_optimization]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about its own graph rewrites are no news to a user
    _, *others = dealt(threads) or [[]]  # the first hand is the caller's
    if others:
        hands = ";".join(",".join(str(processor + 1) for processor in hand) for hand in others)  # they count from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", hands)
    # Threads with a processor each wait for each other awake, but for a run only: between frames they would take the
    # processors from capture and search.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if others else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
