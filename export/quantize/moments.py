"""What the convolutions of a graph meet: the second moments of their inputs over calibration images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from edge_ravlm.errors import DataError

_PLACES = 1500
"""At most about this many places of every image are counted; neighbours say much the same."""


@dataclass(frozen=True, eq=False)
class Convolution:
    """One convolution of an FP32 graph.

    Attributes:
        source: the tensor it reads.
        weight_name: of its weights, which name it too.
        weight: float32 [outputs, inputs / groups, kernel height, kernel width].
        bias: float32 [outputs].
        groups: ONNX's ``group``.
        strides: vertical, horizontal.
        pads: top, left, bottom, right.
    """

    source: str
    weight_name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    groups: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The weights as float32 [outputs, everything else], in the order in which ONNX Runtime's kernels walk them.

        That is kernel row, kernel column, channel: quantized convolutions run channels last.
        """
        return np.asarray(self.weight.transpose(0, 2, 3, 1).reshape(len(self.weight), -1))

    def from_rows(self, rows: NDArray[np.int8]) -> NDArray[np.int8]:
        """Int8 rows back in the weights' own shape."""
        outputs, channels, *kernel = self.weight.shape
        return np.ascontiguousarray(rows.reshape(outputs, *kernel, channels).transpose(0, 3, 1, 2))

    @property
    def is_depthwise(self) -> bool:
        """Whether every output reads one channel of its own."""
        return self.groups > 1

    def patches(self, grid: NDArray[np.float32], phase: int) -> NDArray[np.float32]:
        """What it reads at some places of a picture.

        Args:
            grid: float32 [1, channels, height, width].
            phase: shifts the choice of places.

        Returns:
            Float32 [inputs, places] in the order of ``rows``, or [channels, kernel size, places] where it is depthwise.
        """
        top, left, bottom, right = self.pads
        padded = np.pad(grid[0], ((0, 0), (top, bottom), (left, right)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.weight.shape[2:], (1, 2))
        windows = windows[:, :: self.strides[0], :: self.strides[1]]
        skip = math.ceil(math.sqrt(windows.shape[1] * windows.shape[2] / _PLACES))
        chosen = windows[:, phase % skip :: skip, phase % skip :: skip]
        places = chosen.shape[1] * chosen.shape[2]
        if self.is_depthwise:
            return np.array(chosen.transpose(0, 3, 4, 1, 2).reshape(len(chosen), -1, places))
        return np.array(chosen.transpose(3, 4, 0, 1, 2).reshape(-1, places))


def convolutions(graph: onnx.GraphProto) -> list[Convolution]:
    """The graph's convolutions in its order; raises DataError for one of a kind that cannot be quantized here."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return [_convolution(node, constants) for node in graph.node if node.op_type == "Conv"]


def second_moments(
    model: onnx.ModelProto,
    images: Sequence[NDArray[np.uint8]],
    advance: Callable[[], object] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """Mean of x xᵀ over the inputs x that each convolution meets, by weight name.

    The last input is a constant 1, which the bias weighs.

    Returns:
        Float64 [inputs + 1, inputs + 1], or [channels, kernel size + 1, kernel size + 1] for depthwise ones.
    """
    found = convolutions(model.graph)
    names = list(dict.fromkeys(convolution.source for convolution in found))
    session, sums = _exposing(model, names), dict.fromkeys((c.weight_name for c in found), torch.zeros(()))
    for index, image in enumerate(images):
        grids = dict(zip(names, session.run(names, {"image": image}), strict=True))
        for convolution in found:
            grid = np.asarray(grids[convolution.source], np.float32)
            patches = torch.from_numpy(convolution.patches(grid, index))
            patches = nn.functional.pad(patches, (0, 0, 0, 1), value=1.0)
            moment = (patches @ patches.mT).double() / patches.shape[-1]
            sums[convolution.weight_name] = sums[convolution.weight_name] + moment
        advance()
    return {name: (total / len(images)).numpy() for name, total in sums.items()}


def _exposing(model: onnx.ModelProto, names: Sequence[str]) -> ort.InferenceSession:
    """A one-thread session whose outputs are these float tensors."""
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    del exposed.graph.output[:]
    exposed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the same sums in the same order, so that exports repeat byte for byte
    return ort.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _convolution(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> Convolution:
    given: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    missing = [name for name in node.input[1:] if name not in constants]
    if missing or len(node.input) != 3 or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise DataError(
            f"convolution '{node.name}'",
            expected="constant weights, a constant bias and explicit pads",
            got=missing[0] if missing else f"{len(node.input)} inputs, auto_pad {given.get('auto_pad')}",
            do="export the network with its BatchNorms folded",
        )
    weight, bias = (np.array(numpy_helper.to_array(constants[name])) for name in node.input[1:])
    groups = given.get("group", 1)
    if groups > 1 and (groups != len(weight) or weight.shape[1] > 1):
        raise DataError(
            f"convolution '{node.name}'",
            expected="one group, or a group for every channel",
            got=f"{groups} groups of {len(weight) // groups} output and {weight.shape[1]} input channels",
            do="use ordinary and depthwise convolutions in the network",
        )
    return Convolution(
        source=node.input[0],
        weight_name=node.input[1],
        weight=weight,
        bias=bias,
        groups=groups,
        strides=tuple(given.get("strides", (1, 1))),
        pads=tuple(given.get("pads", (0, 0, 0, 0))),
    )
