"""The two encoders: frame -> vector, sentence -> vector, in the bundle's spaces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Pixels
from edge_ravlm.runtime.backends import open_session

MAX_QUESTION = 1_000
"""Longest question in characters; the tokenizer would cut a longer one in silence."""

Vector = NDArray[np.float32]


class ImageEncoder:
    """Pixels -> unit vector in the bundle's image space.

    Args:
        bundle: an opened bundle.
        flavor: which of its quantization flavours.
        threads: CPU threads; 0 leaves the choice to the backend.
    """

    def __init__(self, bundle: Bundle, flavor: str, threads: int = 0) -> None:
        models = bundle.manifest.flavor(flavor)
        self.preprocess = bundle.manifest.preprocess
        self.space = bundle.manifest.image_space
        self._session = open_session(bundle.read(models.image.file), models.image, threads)

    def embed(self, pixels: Pixels) -> Vector:
        """Preprocessed uint8 [1, height, width, 3] -> float32 [dim], unit length."""
        (embedding,) = self._session.run({"image": pixels}, ("embedding",))
        return np.asarray(embedding[0], np.float32)

    def warm_up(self, runs: int = 3) -> float:
        """Run on an empty picture; returns the fastest run in ms."""
        pixels = np.full_like(self.preprocess.buffer(), 127)
        spent: list[float] = []
        for _ in range(runs):
            start = time.perf_counter()
            self.embed(pixels)
            spent.append((time.perf_counter() - start) * 1e3)
        return min(spent)

    def close(self) -> None:
        """Release the model."""
        self._session.close()


class TextEncoder:
    """Sentence -> unit vector in the bundle's text space."""

    def __init__(self, bundle: Bundle, flavor: str) -> None:
        models = bundle.manifest.flavor(flavor)
        self.space = bundle.manifest.text_space
        self._tokenizer = _tokenizer(bundle)
        # One short sentence is a table look-up: a second thread costs more than it brings.
        self._session = open_session(bundle.read(models.text.file), models.text, threads=1)
        self.embed_question = lru_cache(maxsize=1024)(self._embed_question)

    def embed(self, texts: Sequence[str]) -> Vector:
        """Any number of sentences -> float32 [n, dim], unit length.

        Raises:
            UsageError: a sentence in which the tokenizer finds nothing, such as one of control characters.
        """
        if not texts:
            return np.empty((0, self.space.dim), np.float32)
        batch = self._tokenizer.encode_batch(list(texts))
        ids = np.array([encoding.ids for encoding in batch], np.int64)
        mask = np.array([encoding.attention_mask for encoding in batch], np.int64)
        if not mask.any(axis=1).all():
            raise UsageError(
                "text",
                expected="at least one word or sign in every sentence",
                got="one without any",
                do="write what is meant in plain words",
            )
        (embedding,) = self._session.run({"input_ids": ids, "attention_mask": mask}, ("embedding",))
        return np.asarray(embedding, np.float32)

    def _embed_question(self, question: str) -> Vector:
        vector: Vector = self.embed([check_question(question)])[0]
        vector.setflags(write=False)  # it is handed out again for the same question
        return vector

    def close(self) -> None:
        """Release the model."""
        self._session.close()


def check_question(question: str) -> str:
    """The question; raises UsageError when it is empty, too long or not Unicode text."""
    got = ""
    if not question.strip():
        got = "an empty one"
    elif len(question) > MAX_QUESTION:
        got = f"{len(question)} characters"
    elif not question.isascii() and not _is_utf8(question):
        got = "bytes that are not UTF-8"
    if got:
        raise UsageError(
            "question",
            expected=f"a sentence of 1 to {MAX_QUESTION} characters",
            got=got,
            do="ask it in one plain sentence",
        )
    return question


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tokenizer(bundle: Bundle) -> Tokenizer:
    path = bundle.manifest.tokenizer
    try:
        tokenizer = Tokenizer.from_buffer(bundle.read(path))
    except (ValueError, TypeError) as error:
        raise BundleError(
            bundle.where,
            expected=f"a tokenizer in {path}",
            got=str(error),
            do="export the bundle again",
        ) from None
    tokenizer.enable_padding()
    return tokenizer
