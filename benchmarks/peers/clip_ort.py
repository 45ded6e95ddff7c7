"""fastembed's shape: CLIP ViT-B/32 in ONNX Runtime, FP32, and USearch.

ONNX Runtime has its defaults beside the number of threads, as fastembed leaves it. The question's embedding is kept, as
ours is: it is computed when the question changes, so the text tower takes no part in a frame's time.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import onnxruntime as ort
from usearch.index import Index

from edge_ravlm.frames import Pixels
from peers.inputs import CLIP, Floats, centre_crop, filled, unit, word_ids
from peers.protocol import Job, Reply, Stages


class ClipOrt:
    """Nearest entry to the sum of the frame's and the question's embedding: they share a space.

    Args:
        job: what is taught; its graphs are ``clip_image`` and ``clip_text``.
    """

    def __init__(self, job: Job) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = job.threads
        self._vision, self._language = (
            ort.InferenceSession(job.graphs[name], options, providers=["CPUExecutionProvider"])
            for name in ("clip_image", "clip_text")
        )
        self._side = self._vision.get_inputs()[0].shape[-1]
        self._said = lru_cache(maxsize=1024)(self._embed_text)
        self._texts = (*job.texts, *job.filler)
        taught = [
            unit(self._seen(picture, Stages()) + self._said(text))
            for picture, text in zip(job.stored("taught"), job.texts, strict=True)
        ]
        vectors = filled(taught, job.entries)
        self._index = Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
        self._index.add(np.arange(len(vectors)), vectors)

    def ask(self, frame: Pixels, question: str) -> Reply:
        """See ``Peer.ask``."""
        stages = Stages()
        seen = self._seen(frame, stages)
        with stages.time("question"):
            said = self._said(question)
        with stages.time("search"):
            nearest = int(self._index.search(seen + said, 1).keys[0])
        return Reply(self._texts[nearest], stages)

    def close(self) -> None:
        """Nothing is open."""

    def _seen(self, picture: Pixels, stages: Stages) -> Floats:
        with stages.time("preprocess"):
            pixels = centre_crop(picture, self._side, self._side, cv2.INTER_CUBIC, CLIP)
        with stages.time("encode"):
            (vector,) = map(np.asarray, self._vision.run(["vector"], {"pixels": pixels}))
            return np.asarray(vector[0], np.float32)

    def _embed_text(self, text: str) -> Floats:
        (_, length) = self._language.get_inputs()[0].shape
        start, end = 49_406, 49_407
        ids = [start, *word_ids(text, start)[: length - 2], end]
        padded = np.array([ids + [0] * (length - len(ids))], np.int64)
        (vector,) = map(np.asarray, self._language.run(["vector"], {"tokens": padded}))
        return np.asarray(vector[0], np.float32)
