"""PyTorch to ONNX, within what the oldest supported runtimes load (ONNX Runtime 1.23, TensorRT 10.3)."""

from __future__ import annotations

import warnings

import onnx
import torch
from torch import nn

from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.preprocess import Preprocess

OPSET, IR_VERSION = 18, 10


def image_graph(student: ImageStudent, preprocess: Preprocess) -> onnx.ModelProto:
    """The student as ONNX: input ``image`` uint8 [n, h, w, 3], outputs ``embedding`` and ``tokens``."""
    example = torch.zeros((2, preprocess.height, preprocess.width, 3), dtype=torch.uint8)
    model = _traced(student.eval(), example)
    fold_padding(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def teacher_graph(teacher: ImageTeacher, preprocess: Preprocess) -> bytes:
    """A teacher as ONNX with the input ``image``, to time it as a user would run it."""
    example = torch.zeros((2, preprocess.height, preprocess.width, 3), dtype=torch.uint8)
    return bytes(_traced(_Embedding(teacher), example).SerializeToString())


class _Embedding(nn.Module):
    """A teacher that can be traced."""

    def __init__(self, teacher: ImageTeacher) -> None:
        super().__init__()
        self._teacher = teacher

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 BGR [n, h, w, 3] -> embedding, tokens."""
        return self._teacher.embed(pixels)


def _traced(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*treespec, LeafSpec", FutureWarning)  # torch 2.13 warns of itself
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["image"],
            output_names=["embedding", "tokens"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is only for dynamo=False
    model = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with paths of the machine that exported
        node.doc_string = ""
    return model


def fold_padding(graph: onnx.GraphProto) -> None:
    """Move a zero ``Pad`` in front of a convolution into the convolution's own ``pads``."""
    constants = {t.name: t for t in graph.initializer}
    producers = {node.output[0]: node for node in graph.node}
    for conv in [n for n in graph.node if n.op_type == "Conv" and n.input[0] in producers]:
        pad = producers[conv.input[0]]
        if pad.op_type != "Pad" or pad.input[1] not in constants:
            continue
        amounts = onnx.numpy_helper.to_array(constants[pad.input[1]]).tolist()
        del_index = [i for i, a in enumerate(conv.attribute) if a.name in ("pads", "auto_pad")]
        for index in reversed(del_index):
            del conv.attribute[index]
        conv.attribute.append(onnx.helper.make_attribute("pads", amounts[2:4] + amounts[6:8]))
        conv.input[0] = pad.input[0]
        graph.node.remove(pad)
