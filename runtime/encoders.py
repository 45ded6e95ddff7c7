"""The two encoders: frame -> vector, sentence -> vector, in the bundle's spaces."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.manifest import Closer
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.backends import Session, open_session
from edge_ravlm.runtime.backends.choice import open_fastest, settle
from edge_ravlm.runtime.closer import ATTENTION, EXTENT, Focus, cut_out, find, together

MAX_QUESTION = 1_000
"""Longest question in characters; the tokenizer would cut a longer one in silence."""

GOLDEN_COSINE = 0.97
"""Least that a golden frame may have on any machine; the parity gate wants more, as a mean over many pictures."""

EMBEDDING, TOKENS, MEANING = "embedding", "tokens", "meaning"
"""Outputs of an image model; the first is always there."""

Vector = NDArray[np.float32]

_GLIMPSE = "glimpse_"
"""Before the names of golden glimpses' arrays."""

_NO_CELLS = np.empty((1, 0, 0), np.float32)


@dataclass(frozen=True)
class Look:
    """What one or several runs of the image encoder bring.

    Attributes:
        embedding: float32 [dim], unit length, in the image space.
        cells: float32 [1, cells, width], what the fusion decoder reads; no cells where the flavour has no decoder.
        meaning: float32 [dim of the text space], unit length, in the meaning space; None where the bundle has none.
        focus: where to look closer; None where the bundle cannot, or has done so.
        glimpse: whether it began with a glimpse, which has fewer cells than the decoder was trained to read.
    """

    embedding: Vector
    cells: NDArray[np.float32]
    meaning: Vector | None = None
    focus: Focus | None = None
    glimpse: bool = False

    def is_first(self, region: Region | None) -> bool:
        """Whether there could be a better one: closer, or where somebody said where to look, the full one."""
        return self.focus is not None if region is None else self.glimpse


@dataclass(frozen=True)
class Golden:
    """What an image model has to give, on any machine.

    Attributes:
        pixels: preprocessed, uint8 [n, height, width, 3].
        embeddings: in full precision, float32 [n, dim], unit length.
    """

    pixels: Pixels
    embeddings: Vector


class Eye:
    """An image model in a session, and how it is looked with.

    Args:
        session: of the image model.
        preprocess: of its whole pictures.
        closer: how it looks a second time; None where it does not.
        outputs: what of it is wanted beside the embedding: ``tokens`` and ``meaning``.

    Attributes:
        glimpse: of the small pictures that glimpses take; as ``preprocess`` where there is no closer look.
    """

    def __init__(
        self, session: Session, preprocess: Preprocess, closer: Closer | None, outputs: Sequence[str] = ()
    ) -> None:
        self._session, self.preprocess, self.closer = session, preprocess, closer
        self.glimpse = glimpses_of(preprocess, closer)
        self._outputs = (EMBEDDING, *outputs, *((ATTENTION, EXTENT) if closer is not None else ()))

    def embed(self, pixels: Pixels) -> Vector:
        """One look alone: preprocessed uint8 [1, height, width, 3] -> float32 [dim], unit length."""
        (embedding,) = self._session.run({"image": pixels}, (EMBEDDING,))
        return np.asarray(embedding[0], np.float32)

    def look(self, pixels: Pixels) -> Look:
        """All that there is a use for, from one run over uint8 [1, height, width, 3]."""
        return self.looks(pixels)[0]

    def glimpses(self, pixels: Pixels) -> list[Look]:
        """Looks in the closer look's size, at half the work; full ones where the bundle has no closer look.

        They tell the states of a fixed view no worse: of 596 held-out pictures 0.982 were answered rightly (starter's
        parity report), and 0.980 with full first looks (by the same functions); where not sure, both looked closer.

        Args:
            pixels: uint8 [n, height, width, 3] of ``glimpse``.
        """
        return [replace(look, glimpse=self.closer is not None) for look in self.looks(pixels)]

    def looks(self, pixels: Pixels) -> list[Look]:
        """The same of several pictures in one run, uint8 [n, height, width, 3].

        Raises:
            EdgeRavlmError: more pictures than the model's engine was made for.
        """
        found = dict(zip(self._outputs, self._session.run({"image": pixels}, self._outputs), strict=True))
        return [self._look({name: array[n : n + 1] for name, array in found.items()}) for n in range(len(pixels))]

    def _look(self, found: Mapping[str, NDArray[np.float32]]) -> Look:
        meaning = found[MEANING][0] if MEANING in found else None
        focus = None
        if self.closer is not None:
            focus = find(self.closer, self.preprocess, found[ATTENTION][0], float(found[EXTENT][0, 0]))
        return Look(found[EMBEDDING][0], found.get(TOKENS, _NO_CELLS), meaning, focus)

    def closer_look(self, frame: Frame, first: Look | None = None) -> Look:
        """A first look and a second one at what it attended to; the first alone where the bundle has no second.

        Args:
            frame: the whole of it; what is looked at closer is cut out of its own pixels, with all that they show.
            first: if it was looked at already.
        """
        first = self.look(self.preprocess(frame)) if first is None else first
        return self._with(frame, first)

    def study(self, frame: Frame) -> Look:
        """As thorough a look as there is, for what is taught: no deadline presses."""
        return self._with(frame, self.look(self.preprocess(frame)), studied=True)

    def _with(self, frame: Frame, first: Look, *, studied: bool = False) -> Look:
        closer, focus = self.closer, first.focus
        if closer is None or focus is None:
            return first
        margins = (closer.margin, *(closer.studied if studied else ()))
        parts = [self.embed(self.glimpse(Frame(cut_out(frame.pixels, focus, margin)))) for margin in margins]
        return replace(first, embedding=together([first.embedding, *parts]), focus=None)

    def close(self) -> None:
        """Release the model."""
        self._session.close()


class ImageEncoder(Eye):
    """Pixels -> unit vector in the bundle's image space.

    Args:
        bundle: an opened bundle.
        flavor: which of its quantization flavours.
        threads: CPU threads; 0 leaves the choice to the backend.
        backend: of a CPU's flavour, see ``backends.choice.open_fastest``.

    Attributes:
        preprocess: what all of its methods have to be given.
        space: of the embeddings.
        warm_ms: the fastest run so far.
    """

    def __init__(self, bundle: Bundle, flavor: str, threads: int = 0, backend: str | None = None) -> None:
        manifest, models = bundle.manifest, bundle.manifest.flavor(flavor)
        self.space = manifest.image_space
        outputs = (TOKENS,) * (models.fusion is not None) + (MEANING,) * (manifest.meaning_space is not None)
        full, glimpses = _golden(bundle)
        feeds = [{"image": full.pixels[:1]}]
        if manifest.closer is not None:
            feeds.append({"image": glimpses_of(manifest.preprocess, manifest.closer)(Frame(full.pixels[0]))})
        model = bundle.read(models.image.file)
        session = open_fastest(model, models.image, threads, bundle, feeds, EMBEDDING, backend)
        super().__init__(session, manifest.preprocess, manifest.closer, outputs)
        try:
            self.warm_ms = self._replay(bundle.where, full, "frames")
            if glimpses is not None:
                self._replay(bundle.where, glimpses, "glimpses")
        except BaseException:
            self.close()
            raise

    @property
    def backend(self) -> str:
        """What runs the model now."""
        return self._session.name

    @property
    def processors(self) -> tuple[int, ...]:
        """Where a thread that does nothing but ask is best kept; without any, anywhere."""
        return tuple(getattr(self._session, "processors", ()))

    def settle(self) -> None:
        """See ``backends.choice.settle``."""
        settle(self._session)

    def _replay(self, where: str, golden: Golden, what: str) -> float:
        """Embed golden frames; that also warms the session up. Returns the milliseconds of the fastest run.

        Raises:
            BundleError: this machine computes something else than full precision did at export.
        """
        spent: list[float] = []
        cosines: list[float] = []
        for frame, wanted in zip(golden.pixels, golden.embeddings, strict=True):
            start = time.perf_counter()
            found = self.embed(frame[None])
            spent.append((time.perf_counter() - start) * 1e3)
            cosines.append(1 - float(np.square(found - wanted).sum()) / 2)  # of unit vectors; another length counts too
        worst = float(np.min(cosines))
        if not worst >= GOLDEN_COSINE:  # not: NaN is refused as well
            raise BundleError(
                where,
                expected=f"golden {what} with a cosine of at least {GOLDEN_COSINE} to full precision",
                got=f"{worst:.3f} on this machine",
                do="use another flavour, or report this with the output of `edge-ravlm doctor --json`",
            )
        return min(spent)


class TextEncoder:
    """Sentence -> unit vector in the bundle's text space."""

    def __init__(self, bundle: Bundle, flavor: str) -> None:
        models = bundle.manifest.flavor(flavor)
        self.space = bundle.manifest.text_space
        self._tokenizer = open_tokenizer(bundle, bundle.manifest.tokenizer)
        self._tokenizer.enable_padding()
        self._tokenizer.no_truncation()  # its table has a row for each token, however many: nothing said is left out
        # One short sentence is a table look-up: a second thread costs more than it brings.
        self._session = open_session(bundle.read(models.text.file), models.text, 1, bundle)
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


def open_tokenizer(bundle: Bundle, path: str) -> Tokenizer:
    """A tokenizer of the bundle; raises BundleError when the file is none."""
    try:
        return Tokenizer.from_buffer(bundle.read(path))
    except (ValueError, TypeError) as error:
        raise BundleError(
            bundle.where,
            expected=f"a tokenizer in {path}",
            got=str(error),
            do="export the bundle again",
        ) from None


def check_question(question: str) -> str:
    """The question; raises UsageError when it is no text, empty, too long or not Unicode."""
    if not isinstance(question, str):
        raise _no_question(type(question).__name__)
    if not question.strip():
        raise _no_question("an empty one")
    if len(question) > MAX_QUESTION:
        raise _no_question(f"{len(question)} characters")
    if not question.isascii() and not _is_utf8(question):
        raise _no_question("bytes that are not UTF-8")
    return question


def _no_question(got: str) -> UsageError:
    return UsageError(
        "question",
        expected=f"a sentence of 1 to {MAX_QUESTION} characters",
        got=got,
        do="ask it in one plain sentence",
    )


def glimpses_of(preprocess: Preprocess, closer: Closer | None) -> Preprocess:
    """The same in the size of glimpses; as it is where there is no closer look."""
    return preprocess if closer is None else msgspec.structs.replace(preprocess, height=closer.side, width=closer.side)


def _golden(bundle: Bundle) -> tuple[Golden, Golden | None]:
    """Golden frames, and glimpses where there are any: bundles had none when they began to take glimpses."""
    manifest = bundle.manifest
    shapes = {"": manifest.preprocess}
    try:
        with np.load(io.BytesIO(bundle.read(manifest.golden)), allow_pickle=False) as arrays:
            if manifest.closer is not None and f"{_GLIMPSE}pixels" in arrays:
                shapes[_GLIMPSE] = glimpses_of(manifest.preprocess, manifest.closer)
            pixels = {kind: np.asarray(arrays[f"{kind}pixels"], np.uint8) for kind in shapes}
            embeddings = {kind: np.asarray(arrays[f"{kind}embeddings"], np.float32) for kind in shapes}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _not_golden(bundle, str(error) or "something else") from None
    for kind, shape in shapes.items():
        got, count = (pixels[kind].shape, embeddings[kind].shape), len(pixels[kind])
        if got != ((count, shape.height, shape.width, 3), (count, manifest.image_space.dim)) or not count:
            raise _not_golden(bundle, f"{kind}shapes {got[0]} and {got[1]}")
    full, *glimpses = (Golden(pixels[kind], embeddings[kind]) for kind in shapes)
    return full, glimpses[0] if glimpses else None


def _not_golden(bundle: Bundle, got: str) -> BundleError:
    return BundleError(
        bundle.where,
        expected=f"frames and their embeddings in {bundle.manifest.golden}",
        got=got,
        do="export the bundle again",
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
