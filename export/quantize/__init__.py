"""Quantization, one file per flavour; each has ``quantize(model, images, advance, keep_float=…)``."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from edge_ravlm.errors import DataError


def check_layers(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Refuse names that no convolution has, such as a recipe's that was written for another student."""
    known = [node.name for node in model.graph.node if node.op_type == "Conv"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"layer '{unknown[0]}'",
            expected=f"a convolution's name, such as '{known[0]}' or '{known[-1]}'",
            got="no such layer",
            do="correct quantize.keep_float in the recipe",
        )
