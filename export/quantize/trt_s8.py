"""Flavour ``trt-s8``: explicit Q/DQ for TensorRT – symmetric int8 in every convolution, FP16 between them.

NVIDIA ModelOpt chooses the activation ranges, places the nodes as TensorRT fuses them and narrows the rest to FP16; the
weights are rounded here (``weights.py``), which takes the mean cosine of EfficientNet-Lite0 from 0.991 to 0.997. The
graph is strongly typed and loads from TensorRT 10.3 on: opset 19, IR 10, no int32 biases, and nothing but ``Cast``
reads the bytes of the input. Pooling and normalisation stay in FP32, so both outputs are float32; the
projection between them cannot, since TensorRT-RTX has no matrix product in FP32 for Turing.

ONNX Runtime runs such a graph rightly only with its optimizations off (``graph_optimization = "disable"``): the others
quantize the biases too, in FP16, where whatever is more than 65504 steps overflows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_ravlm.errors import EdgeRavlmError, needs_extra
from edge_ravlm.export.quantize.candidates import CALIBRATIONS, JUDGED, Calibration, Judge, closeness, paced
from edge_ravlm.export.quantize.keep_float import check_layers
from edge_ravlm.export.quantize.modelopt_process import Request
from edge_ravlm.export.quantize.moments import Convolution
from edge_ravlm.export.quantize.weights import round_for_inputs, symmetric_scales

_SMALLEST_SCALE = 2.0**-14
"""Of a channel's weights: FP16's smallest normal number."""


def quantize(
    model: onnx.ModelProto,
    images: Sequence[NDArray[np.uint8]],
    advance: Callable[[], object] = lambda: None,
    *,
    keep_float: Collection[str] = (),
    calibrations: Sequence[Calibration] = CALIBRATIONS["trt-s8"],
    judge: Judge | None = None,
) -> onnx.ModelProto:
    """Quantize the convolutions in several ways, and keep the best.

    ModelOpt works in a process of its own: it patches ONNX Runtime's quantizer for good, and ``cpu-u8`` needs that as
    it is.

    Args:
        model: FP32 graph with the input ``image``, uint8 [n, h, w, 3].
        images: calibration inputs, uint8 [1, h, w, 3] each.
        advance: called twice per calibration image.
        keep_float: names of convolutions that stay in FP16.
        calibrations: ways to choose the ranges of activations.
        judge: by default the mean cosine to ``model`` on the first calibration images.

    Raises:
        DataError: ``keep_float`` has a name that no convolution has.
        MissingExtra: ModelOpt is not installed.
        EdgeRavlmError: ModelOpt failed.
    """
    check_layers(model, keep_float)
    ready = onnx.load_model_from_string(model.SerializeToString())
    cast_first(ready.graph)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(ready, Path(folder, "model.onnx"))
        np.save(Path(folder, "images.npy"), np.stack(images))
        request = Request(list(calibrations), list(keep_float), tail(ready.graph))
        _run_modelopt(folder, request, paced(advance, 2, 1 + len(calibrations)))
        candidates = [onnx.load(Path(folder, f"{name}.onnx")) for name in calibrations]
    return max(candidates, key=judge or closeness(model, images[:JUDGED], optimize=False))


def cast_first(graph: onnx.GraphProto) -> None:
    """Turn transposed bytes that become floats into floats that are transposed: TensorRT can only cast bytes."""
    makers = {output: node for node in graph.node for output in node.output}
    bytes_in = {value.name for value in graph.input}
    for cast in [node for node in graph.node if node.op_type == "Cast"]:
        transpose = makers.get(cast.input[0])
        if transpose is None or transpose.op_type != "Transpose" or transpose.input[0] not in bytes_in:
            continue
        # The two change their places, and so do the names of what lies between and after them.
        between, after = transpose.output[0], cast.output[0]
        cast.input[0], cast.output[0] = transpose.input[0], between
        transpose.input[0], transpose.output[0] = between, after
        places = [index for index, node in enumerate(graph.node) if node in (cast, transpose)]
        first, second = (onnx.NodeProto.FromString(node.SerializeToString()) for node in (cast, transpose))
        graph.node[places[0]].CopyFrom(first)
        graph.node[places[1]].CopyFrom(second)
    del graph.value_info[:]  # what was bytes is floats now


def tail(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes after the last convolutions and their activations that stay in FP32: all but products."""
    before: set[str] = set()  # tensors that some convolution depends on
    for node in reversed(graph.node):
        if node.op_type == "Conv" or not before.isdisjoint(node.output):
            before.update(node.input)
    inside = {output for node in graph.node if node.op_type == "Conv" for output in node.output}
    names = []
    for node in graph.node:
        activation = node.op_type in ("Clip", "Relu") and node.input[0] in inside
        if node.op_type == "Conv" or activation or not before.isdisjoint(node.output):
            inside.update(node.output)
        elif node.op_type != "MatMul":
            names.append(node.name)
    return names


def round_weights(
    graph: onnx.GraphProto, originals: Sequence[Convolution], moments: dict[str, NDArray[np.float64]]
) -> None:
    """Store the weights of every quantized convolution as int8, rounded for the inputs that they meet.

    ModelOpt leaves floats and a ``QuantizeLinear`` that rounds each to the nearest; that node goes.

    Args:
        graph: with ModelOpt's Q/DQ nodes; changed in place.
        originals: the FP32 graph's convolutions.
        moments: second moments of their inputs, by weight name.
    """
    makers = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    by_weight = {original.weight_name: original for original in originals}
    for node in [node for node in graph.node if node.op_type == "Conv" and node.input[1] in makers]:
        dequantize = makers[node.input[1]]
        quantize_node = makers[dequantize.input[0]]
        name, bias_name, scale_name = quantize_node.input[0], node.input[2], dequantize.input[1]
        original = by_weight[name]
        # TensorRT gets the scales in FP16, so the weights are rounded for these.
        scales = np.maximum(symmetric_scales(original.rows), _SMALLEST_SCALE).astype(np.float16).astype(np.float32)
        rounded, bias = round_for_inputs(original.rows, original.bias, scales, moments[name], paired=False)
        tensors[name].CopyFrom(numpy_helper.from_array(original.from_rows(rounded), name))
        tensors[bias_name].CopyFrom(numpy_helper.from_array(bias.astype(np.float32), bias_name))
        tensors[scale_name].CopyFrom(numpy_helper.from_array(scales, scale_name))
        dequantize.input[0] = name
        graph.node.remove(quantize_node)


def _run_modelopt(folder: str, request: Request, advance: Callable[[], object]) -> None:
    """Run ``modelopt_process`` on a folder, an ``advance`` per line that it prints."""
    with needs_extra("export"):
        if find_spec("modelopt") is None:
            raise ModuleNotFoundError(name="modelopt")
    command = [sys.executable, "-m", "edge_ravlm.export.quantize.modelopt_process", folder, request.encode()]
    with Path(folder, "log.txt").open("w+", encoding="utf-8") as log:
        own = {**os.environ, "TMPDIR": folder}  # what it forgets to remove goes with the folder
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=own) as process:
            assert process.stdout is not None  # it is a pipe
            try:
                for _ in process.stdout:
                    advance()
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            lines = [line.strip() for line in log if line.strip()]
            killed = "it was killed, as happens when memory runs out" if process.returncode < 0 else ""
            raise EdgeRavlmError(
                "quantization for trt-s8",
                expected="ModelOpt to finish",
                got=killed or (lines[-1] if lines else f"exit code {process.returncode}"),
                do="free memory or use fewer calibration images" if killed else "report this with the recipe",
            )
