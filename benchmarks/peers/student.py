"""Our own image encoder in full precision, inside the product's pipeline: what INT8 and its backend are worth.

The starter ships INT8 alone, so the student is built again from the published ImageNet weights. Its whitening stays
the identity: as many products with other numbers, which costs the same. It would be sure less often, though, so that
it is believed at once: one look, which is what ours takes at the median.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from main_job import BUDGET_MS, FLAVOR
from numpy.typing import NDArray

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import Session
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession
from edge_ravlm.runtime.encoders import EMBEDDING, ImageEncoder, Look
from edge_ravlm.runtime.opening import open_memory
from edge_ravlm.runtime.pipeline import Ravlm
from peers.ours import Pipeline
from peers.protocol import Job

_NO_CELLS = np.empty((1, 0, 0), np.float32)
"""Nothing reads them: no answer is generated."""

Embed = Callable[[Pixels], NDArray[np.float32]]
"""Encoder input uint8 [1, h, w, 3] -> float32 [dim]."""

Encoder = Callable[[Bundle, str, int], ImageEncoder]
"""Bundle, flavour and threads -> the encoder to put in."""


class FullPrecisionEncoder(ImageEncoder):
    """The product's encoder with the model's run replaced."""

    def __init__(self, bundle: Bundle, flavor: str, threads: int, embed: Embed) -> None:
        self._embed: Embed | None = None  # the bundle's own model, while it proves itself on golden frames
        super().__init__(bundle, flavor, threads)
        self._embed = embed

    def looks(self, pixels: Pixels) -> list[Look]:
        """See ``ImageEncoder.looks``."""
        if self._embed is None:
            return super().looks(pixels)
        return [Look(self._embed(one[None]), _NO_CELLS) for one in pixels]

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """See ``ImageEncoder.embed``."""
        return super().embed(pixels) if self._embed is None else self._embed(pixels)


class OtherRavlm(Ravlm):
    """The product's pipeline around another encoder; everything else is the very same code.

    Args:
        encoder: makes it.
        threads: as for the pipeline it stands beside.
    """

    def __init__(self, encoder: Encoder, threads: int) -> None:
        bundle = Bundle.open(STARTER)
        manifest = bundle.manifest
        believed = msgspec.structs.replace(manifest.answering, image_floor=-1.0, abstain_below=0.0, glimpse_above=0.0)
        bundle.manifest = msgspec.structs.replace(manifest, answering=believed)
        self._folder = tempfile.TemporaryDirectory(prefix="edge-ravlm-peer-")
        memory = open_memory(bundle, Path(self._folder.name) / "memory")
        image = encoder(bundle, FLAVOR, threads)
        super().__init__(bundle, memory, flavor=FLAVOR, budget_ms=BUDGET_MS, threads=threads, image=image)
        if self._generator is not None:  # it reads cells, and theirs never learnt what they mean
            self._generator.close()
            self._generator = None

    def close(self) -> None:
        """See ``Ravlm.close``."""
        super().close()
        self._folder.cleanup()


def full_precision(job: Job, embed: Embed) -> Pipeline:
    """The pipeline around a student in full precision."""

    def encoder(bundle: Bundle, flavor: str, threads: int) -> ImageEncoder:
        return FullPrecisionEncoder(bundle, flavor, threads, embed)

    return Pipeline(OtherRavlm(encoder, job.threads), job)


def embedder(session: Session) -> Embed:
    """A session of the student's graph as a function."""

    def embed(pixels: Pixels) -> NDArray[np.float32]:
        (embedding,) = session.run({"image": pixels}, (EMBEDDING,))
        return np.asarray(embedding[0], np.float32)

    return embed


def ort_fp32(job: Job) -> Pipeline:
    """In ONNX Runtime, with the options that the product gives it."""
    graph = Path(job.graphs["student"])
    session = OnnxRuntimeSession.open(graph.read_bytes(), Model(file=graph.name), job.threads)
    return full_precision(job, embedder(session))
