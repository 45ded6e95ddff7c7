"""The trained decoder as two ONNX graphs, one that reads and one that writes a word, with 8-bit weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn
from torch.export import Dim

from edge_ravlm.export.fusion.model import NEVER, FusionDecoder, Read
from edge_ravlm.export.onnx_graph import traced
from edge_ravlm.runtime.fusion.decoder import PREFILL_OUTPUTS, STEP_OUTPUTS
from edge_ravlm.runtime.fusion.layout import FEATURES


def prefill_graph(decoder: FusionDecoder, cells: int) -> onnx.ModelProto:
    """The graph that reads; see ``runtime.fusion.decoder`` for its inputs and outputs."""
    shape, b, t = decoder.shape, 3, 11
    tokens = torch.ones((b, t), dtype=torch.int64)
    example = (tokens, tokens.clone(), torch.zeros(b, len(FEATURES)), torch.zeros(b, shape.dim))
    seen = torch.zeros(1, cells, shape.channels)
    blocks, length = Dim("b", min=2, max=64), Dim("t", min=2, max=96)
    dynamic = ({0: blocks, 1: length}, {0: blocks, 1: length}, {0: blocks}, {0: blocks}, None)
    names = ["tokens", "roles", "features", "products", "cells"]
    return traced(_Prefill(decoder).eval(), (*example, seen), names, PREFILL_OUTPUTS, dynamic)


def step_graph(decoder: FusionDecoder, cells: int) -> onnx.ModelProto:
    """The graph that writes one word of n answers; the last ``cells`` places cannot be copied."""
    shape, n, p, m = decoder.shape, 2, 3, 60
    head = shape.width // shape.heads
    past = torch.zeros(shape.writers, n, shape.heads, p, head)
    read = torch.zeros(shape.writers, shape.heads, m, head)
    example = (
        torch.ones(n, dtype=torch.int64),
        torch.tensor([p]),
        past,
        past.clone(),
        read,
        read.clone(),
        torch.zeros(m, shape.width),
        torch.zeros(m),
        torch.zeros(n, m, 2),
    )
    some, before, places = Dim("n", max=16), Dim("p", max=256), Dim("m", max=8192)
    past_sizes, read_sizes = {1: some, 3: before}, {2: places}
    dynamic = (
        *({0: some}, None, past_sizes, past_sizes, read_sizes, read_sizes),
        *({0: places}, {0: places}, {0: some, 1: places}),
    )
    names = ["last", "position", "past_keys", "past_values", "keys", "values", "pointers", "mask"]
    return traced(_Step(decoder, cells).eval(), example, [*names, "continues"], STEP_OUTPUTS, dynamic)


def with_small_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """8-bit weights, rows of their own scale; activations are quantized as they come (ONNX Runtime's kernels).

    Seven bits are used: full ones overflow in the 16-bit sums of CPUs without VNNI.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "small"))
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)  # weights lie as they are multiplied
        quantize_dynamic(
            ready,
            small,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        found = onnx.load(small)
    for entry in [entry for entry in found.opset_import if entry.domain and not _used(found, entry.domain)]:
        found.opset_import.remove(entry)
    return found


class _Prefill(nn.Module):
    def __init__(self, decoder: FusionDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, tokens: Tensor, roles: Tensor, features: Tensor, products: Tensor, cells: Tensor
    ) -> tuple[Tensor, ...]:
        read = self.decoder.read(tokens[None], roles[None], features[None], products[None], cells)
        return read.keys[:, 0], read.values[:, 0], read.pointers[0], read.mask[0]


class _Step(nn.Module):
    def __init__(self, decoder: FusionDecoder, cells: int) -> None:
        super().__init__()
        self.decoder, self.cells = decoder, cells

    def forward(
        self,
        last: Tensor,
        position: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        keys: Tensor,
        values: Tensor,
        pointers: Tensor,
        mask: Tensor,
        continues: Tensor,
    ) -> tuple[Tensor, ...]:
        copyable = torch.cat([mask[: -self.cells], torch.full((self.cells,), NEVER)])
        read = Read(keys[:, None], values[:, None], pointers[None], mask[None], copyable[None])
        words, copies, new_keys, new_values = self.decoder.write(
            last[:, None], position, past_keys, past_values, read, continues[:, None]
        )
        return words[:, 0], copies[:, 0], new_keys, new_values


def _used(model: onnx.ModelProto, domain: str) -> bool:
    return any(node.domain == domain for node in model.graph.node)
