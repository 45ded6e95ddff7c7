"""The image encoder in full precision, in PyTorch eager and in ONNX Runtime, inside the product's own pipeline.

The starter ships INT8 alone, so the student is built again from the published ImageNet weights. Its whitening stays
the identity: as many products with other numbers, which costs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.export.onnx_graph import free_sides, image_graph
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.teachers.efficientnet import load_efficientnet_lite
from edge_ravlm.export.teachers.weights import package_file
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession
from edge_ravlm.runtime.closer import Focus
from edge_ravlm.runtime.encoders import ImageEncoder, Look
from edge_ravlm.runtime.pipeline import Ravlm, open_memory

WEIGHTS = "efficientnet-lite0"

_NO_CELLS = np.empty((1, 0, 0), np.float32)
"""Nothing reads them: no answer is generated."""

Embed = Callable[[Pixels], NDArray[np.float32]]
"""Encoder input uint8 [1, h, w, 3] -> float32 [dim]."""


class PeerEncoder(ImageEncoder):
    """The product's encoder with the model's run replaced."""

    def __init__(self, bundle: Bundle, flavor: str, threads: int, embed: Embed) -> None:
        self._embed: Embed | None = None  # the bundle's own model, while it proves itself on golden frames
        super().__init__(bundle, flavor, threads)
        self._embed = embed

    def look(self, pixels: Pixels) -> Look:
        """See ``ImageEncoder.look``."""
        if self._embed is None:
            return super().look(pixels)
        # Their weights never learnt where to look: the middle costs the same.
        return Look(self._embed(pixels), _NO_CELLS, focus=None if self.closer is None else Focus(0.5, 0.5, 0.5))

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """See ``ImageEncoder.embed``."""
        return super().embed(pixels) if self._embed is None else self._embed(pixels)


class Peer(Ravlm):
    """The product's pipeline around another encoder; everything else is the very same code.

    Args:
        bundle: gives preprocessing, text encoder and answering rules.
        memory: a new folder; this encoder's vectors must not meet the bundle's own.
        flavor, budget_ms, threads: as for the pipeline it stands beside.
        embed: the encoder.
    """

    def __init__(
        self, bundle: Bundle, memory: Path, *, flavor: str, budget_ms: float, threads: int, embed: Embed
    ) -> None:
        store = open_memory(bundle, memory)
        super().__init__(bundle, store, flavor=flavor, budget_ms=budget_ms, threads=threads)
        self._image.close()
        self._image = PeerEncoder(bundle, flavor, threads, embed)


def peers(bundle: Bundle, threads: int) -> dict[str, Embed]:
    """Each peer's encoder by name; ONNX Runtime gets the options that the product gives it.

    Raises:
        DataError: the weights are neither in the cache nor to be fetched.
    """
    torch.set_num_threads(threads)
    preprocess = bundle.manifest.preprocess
    backbone = load_efficientnet_lite(package_file(WEIGHTS, "*.pth"), int(WEIGHTS[-1]), preprocess.width)
    student = ImageStudent(backbone, bundle.manifest.image_space.dim).eval()
    graph = image_graph(student, preprocess)
    free_sides(graph)
    session = OnnxRuntimeSession.open(graph.SerializeToString(), Model(file=f"{WEIGHTS} FP32"), threads)

    @torch.inference_mode()
    def torch_eager(pixels: Pixels) -> NDArray[np.float32]:
        return np.asarray(student(torch.from_numpy(pixels))[0][0].numpy(), np.float32)

    def ort_fp32(pixels: Pixels) -> NDArray[np.float32]:
        (embedding,) = session.run({"image": pixels}, ("embedding",))
        return np.asarray(embedding[0], np.float32)

    return {"torch_eager": torch_eager, "ort_fp32": ort_fp32}
