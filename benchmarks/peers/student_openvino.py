"""Our student in OpenVINO: FP32, and the INT8 model that we ship."""

from __future__ import annotations

from pathlib import Path

from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends.choice import OPENVINO
from edge_ravlm.runtime.backends.openvino import OpenVinoSession
from peers.ours import Pipeline, opened
from peers.protocol import Job
from peers.student import embedder, full_precision


def openvino_fp32(job: Job) -> Pipeline:
    """The student in full precision."""
    graph = Path(job.graphs["student"])
    # Asked for, as processors with BF16 compute in that otherwise.
    session = OpenVinoSession(graph.read_bytes(), Model(file=graph.name), job.threads, INFERENCE_PRECISION_HINT="f32")
    return full_precision(job, embedder(session))


def openvino_int8(job: Job) -> Pipeline:
    """The model that ships."""
    return Pipeline(opened(job, OPENVINO), job)
