"""The meaning head: tokens -> a unit vector in the text student's space; and how it gets into an image graph."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from edge_ravlm.export.onnx_graph import TINY, append, append_unit_rows, pool
from edge_ravlm.export.students.image import pooled
from edge_ravlm.manifest import Space, space_id

OUTPUT = "meaning"
_LEVELS = 127


class Meaning(nn.Module):
    """Tokens pooled by attention, one hidden layer, a unit vector.

    Args:
        query: float32 [channels] to pool by, the image student's own: the features that its embedding is made of.
        hidden: units of the hidden layer.
        dim: of the text space.
    """

    query: Tensor

    def __init__(self, query: Tensor, hidden: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("query", query.detach().clone())
        self.widen, self.project = nn.Linear(len(query), hidden), nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Float32 [n, cells, channels] -> float32 [n, dim] of unit length."""
        return self.read(pooled(tokens, self.query))

    def read(self, features: Tensor) -> Tensor:
        """Pooled float32 [n, channels] of unit length -> float32 [n, dim] of unit length."""
        hidden = nn.functional.relu(self.widen(features))
        return nn.functional.normalize(self.project(hidden), dim=1)

    def space(self, image: Space, text: Space) -> Space:
        """Of its output: another encoder, another text space or other weights make it another one."""
        weights = {name: tensor.numpy().tobytes() for name, tensor in self.state_dict().items()}
        return Space(id=space_id(weights, {"image": image.id, "text": text.id, "output": OUTPUT}), dim=text.dim)


def with_meaning(model: onnx.ModelProto, head: Meaning, *, int8: bool) -> onnx.ModelProto:
    """A copy of an image graph that has the head's output ``meaning`` as its last; the others stay as they are.

    The head is put on after quantization: it is a thousandth of the encoder's work, so that its arithmetic stays in
    floating point, while its weights may be bytes with one scale per unit.

    Args:
        model: has the output ``tokens``, float32 [n, cells, channels].
        head: fitted on that encoder's tokens.
        int8: whether to store the weights as bytes.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    _, features = pool(graph, head.query.numpy())
    nodes, constants = list[onnx.NodeProto](), dict[str, NDArray[Any]]()
    for name, layer in (("widen", head.widen), ("project", head.project)):
        constants[f"meaning.{name}_bias"] = layer.bias.detach().numpy()
        matrix = layer.weight.detach().numpy().T
        if int8:
            # Multiplied out once when the model is opened; a DequantizeLinear would be run with every picture.
            stored, plain = [f"meaning.{name}_bytes", f"meaning.{name}_scale"], f"meaning.{name}_floats"
            constants |= dict(zip(stored, _bytes(matrix), strict=True))
            nodes.append(helper.make_node("Cast", stored[:1], [plain], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [plain, stored[1]], [f"meaning.{name}"]))
        else:
            constants[f"meaning.{name}"] = matrix
    nodes += [
        helper.make_node("Gemm", [features, "meaning.widen", "meaning.widen_bias"], ["meaning.wide"]),
        helper.make_node("Relu", ["meaning.wide"], ["meaning.hidden"]),
        helper.make_node("Gemm", ["meaning.hidden", "meaning.project", "meaning.project_bias"], ["meaning.point"]),
    ]
    append(graph, nodes, constants)
    append_unit_rows(graph, "meaning.point", OUTPUT)
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", head.project.out_features]))
    onnx.checker.check_model(model)
    return model


def _bytes(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 [inputs, units] and float32 scales [units]."""
    scales = np.maximum(np.abs(matrix).max(0), np.float32(TINY)) / np.float32(_LEVELS)
    return np.rint(matrix / scales).astype(np.int8), scales.astype(np.float32)
