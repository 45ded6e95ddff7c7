"""Who is asked: EdgeRAVLM in three ways, and what a user would pick instead."""

from __future__ import annotations

from dataclasses import dataclass

RANDOM = "random (speed only)"
PUBLISHED = "published ImageNet weights, untrained whitening (speed only)"


@dataclass(frozen=True)
class PeerSpec:
    """One way to answer.

    Attributes:
        name: what ``--only`` calls it.
        opener: ``module:function`` that makes it from a ``Job``.
        precision: of its models.
        weights: where they are from.
        environment: a file in ``env/`` without ``.txt``; empty for the interpreter in use.
        graphs: ONNX models that it needs, see ``export_graphs.py``.
        against: which of OURS it is compared with.
        disputed: one of its stages that another user would do without; the ratio is given without it too.
    """

    name: str
    opener: str
    precision: str
    weights: str = RANDOM
    environment: str = ""
    graphs: tuple[str, ...] = ()
    against: str = "retrieved"
    disputed: str = ""


OURS = (
    PeerSpec("retrieved", "peers.ours:retrieved", "INT8", "starter bundle"),
    PeerSpec("retrieved_region", "peers.ours:retrieved_region", "INT8", "starter bundle"),
    PeerSpec("generated", "peers.ours:generated", "INT8", "starter bundle"),
)

PEERS = (
    PeerSpec("textbook", "peers.textbook:Textbook", "FP32", environment="torch", disputed="question"),
    PeerSpec(
        "smallcap", "peers.smallcap:SmallCap", "FP32", environment="torch", against="generated", disputed="decode"
    ),
    PeerSpec(
        "clip_ort", "peers.clip_ort:ClipOrt", "FP32", environment="onnxruntime", graphs=("clip_image", "clip_text")
    ),
    PeerSpec("torch_eager", "peers.student_torch:torch_eager", "FP32", PUBLISHED, "torch"),
    PeerSpec("ort_fp32", "peers.student:ort_fp32", "FP32", PUBLISHED, "onnxruntime", ("student",)),
    PeerSpec("openvino_fp32", "peers.student_openvino:openvino_fp32", "FP32", PUBLISHED, "openvino", ("student",)),
    PeerSpec("openvino_int8", "peers.student_openvino:openvino_int8", "INT8", "starter bundle", "openvino"),
)
