"""Our student in PyTorch eager, FP32."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.teachers.efficientnet import load_efficientnet_lite
from edge_ravlm.export.teachers.weights import package_file
from edge_ravlm.frames import Pixels
from peers.ours import Pipeline
from peers.protocol import Job
from peers.student import Embed, full_precision

WEIGHTS = "efficientnet-lite0"


def student(bundle: Bundle) -> ImageStudent:
    """The student in full precision, with published weights.

    Raises:
        DataError: the weights are neither in the cache nor to be fetched.
    """
    manifest = bundle.manifest
    backbone = load_efficientnet_lite(package_file(WEIGHTS, "*.pth"), int(WEIGHTS[-1]), manifest.preprocess.width)
    return ImageStudent(backbone, manifest.image_space.dim).eval()


def embedder(network: ImageStudent) -> Embed:
    """The network as a function, eager."""

    @torch.inference_mode()
    def embed(pixels: Pixels) -> NDArray[np.float32]:
        return np.asarray(network(torch.from_numpy(pixels))[0][0].numpy(), np.float32)

    return embed


def torch_eager(job: Job) -> Pipeline:
    """In PyTorch, as it was trained."""
    torch.set_num_threads(job.threads)
    return full_precision(job, embedder(student(Bundle.open(STARTER))))
