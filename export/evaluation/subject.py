"""What is judged: a bundle's shipping sessions, behind small protocols so that tests can put known answers there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.console import Bar
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.encoders import ImageEncoder, TextEncoder
from edge_ravlm.runtime.fusion.decoder import FusionDecoder, Generated
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.fusion.retrieval import Sentences
from edge_ravlm.runtime.memory import Space

STEPS = 8
"""Tokens of the answer that ``Reader.milliseconds`` tells the time of."""

Floats = NDArray[np.float32]

A = TypeVar("A")
B = TypeVar("B")


class Look(Protocol):
    """A picture, encoded; see ``runtime.encoders.Look``."""

    @property
    def embedding(self) -> Floats: ...  # noqa: D102
    @property
    def cells(self) -> Floats | None: ...  # noqa: D102
    @property
    def meaning(self) -> Floats | None: ...  # noqa: D102


class Eyes(Protocol):
    """The image encoder."""

    def closer_look(self, frame: Frame, /) -> Look:
        """Encode what is asked about; called from several threads."""

    def study(self, frame: Frame, /) -> Look:
        """Encode what is taught."""


@dataclass(frozen=True)
class Reply:
    """What the decoder says.

    Attributes:
        text: its best guess, also where it would rather abstain.
        abstention: how probable it is that nothing answers the question.
        confidence: how probable the text is to the decoder.
        copied: float32 [passages], the share of the text that was copied from each.
    """

    text: str
    abstention: float
    confidence: float
    copied: Floats


@dataclass(frozen=True)
class Episode:
    """A question with what there is to answer it from.

    Attributes:
        passages: best first.
        cells: float32 [1, cells, channels], the picture's; zeros where there is no picture.
    """

    question: str
    passages: Sequence[Passage]
    cells: Floats


class Reader(Protocol):
    """The fusion decoder.

    Attributes:
        entries: how many a picture brings it to read, see ``manifest.FusionSpec``.
        abstain_above: abstention from which it gives no answer.
    """

    @property
    def entries(self) -> int: ...  # noqa: D102
    @property
    def abstain_above(self) -> float: ...  # noqa: D102

    def answer(self, episode: Episode) -> Reply:
        """Answer; called from several threads."""

    def milliseconds(self, episodes: Sequence[Episode]) -> float:
        """Median time of reading an episode and writing STEPS tokens, on two threads with nothing else running."""


@dataclass(frozen=True)
class Subject:
    """A bundle, opened.

    Attributes:
        name: for the report.
        reader: None where the bundle has no decoder.
        rules: of the vote.
        has_meaning: whether pictures can be compared with texts.
    """

    name: str
    eyes: Eyes
    words: Sentences
    reader: Reader | None
    image_space: Space
    text_space: Space
    rules: Answering
    has_meaning: bool = False

    def see(
        self, pictures: int, picture: Callable[[int], Pixels], bar: Bar, what: str, *, taught: bool = False
    ) -> list[Look]:
        """Make and encode pictures on all cores.

        Args:
            pictures: how many.
            picture: gives uint8 [h, w, 3] BGR for 0 to ``pictures`` - 1.
            bar: opens progress bars.
            what: the bar's title.
            taught: whether they are to be remembered, instead of asked about.
        """
        look = self.eyes.study if taught else self.eyes.closer_look
        return on_all_cores(lambda index: look(Frame(picture(index))), range(pictures), bar, what)


class BundleReader:
    """A bundle's decoder; see ``Reader``."""

    def __init__(self, bundle: Bundle, flavor: str) -> None:
        self._decoder = FusionDecoder(bundle, flavor, threads=1)  # as many questions at once as there are cores
        self._bundle, self._flavor = bundle, flavor
        self.entries = self._decoder.spec.entries
        self.abstain_above = self._decoder.spec.abstain_above

    def answer(self, episode: Episode) -> Reply:
        """See ``Reader.answer``."""
        said = _answered(self._decoder, episode)
        return Reply(said.text, said.abstention, said.confidence, said.weights)

    def milliseconds(self, episodes: Sequence[Episode]) -> float:
        """See ``Reader.milliseconds``; the medians of reading and of single steps, put together."""
        decoder = FusionDecoder(self._bundle, self._flavor, threads=2)
        try:
            for episode in episodes:
                _answered(decoder, episode)
            return decoder.prefill_pace.ms + STEPS * decoder.step_pace.ms
        finally:
            decoder.close()

    def close(self) -> None:
        """Release the models."""
        self._decoder.close()


@contextmanager
def opened(bundle: Bundle, flavor: str) -> Iterator[Subject]:
    """Open what of a bundle is judged.

    Raises:
        BundleError: there is no such flavour, or it does not run here as it did at export.
    """
    manifest = bundle.manifest
    with ExitStack() as stack:
        eyes = ImageEncoder(bundle, flavor, threads=1)
        stack.callback(eyes.close)
        words = TextEncoder(bundle, flavor)
        stack.callback(words.close)
        reader = None
        if manifest.fusion is not None and manifest.flavor(flavor).fusion is not None:
            reader = BundleReader(bundle, flavor)
            stack.callback(reader.close)
        yield Subject(
            f"{manifest.name} ({flavor})",
            eyes,
            words,
            reader,
            Space(manifest.image_space.id, manifest.image_space.dim),
            Space(manifest.text_space.id, manifest.text_space.dim),
            manifest.answering,
            manifest.meaning_space is not None,
        )


def cells_of(look: Look) -> Floats:
    """Its cells; a bundle with a decoder has them."""
    assert look.cells is not None
    return look.cells


def on_all_cores(function: Callable[[A], B], items: Sequence[A], bar: Bar, what: str) -> list[B]:
    """``function`` of each item, in order, under a progress bar."""
    done: list[B] = []
    with bar(what, len(items)) as advance, ThreadPoolExecutor(os.cpu_count()) as crew:
        for result in crew.map(function, items):
            done.append(result)
            advance()
    return done


def _answered(decoder: FusionDecoder, episode: Episode) -> Generated:
    return decoder.generate(decoder.prefill(decoder.lay_out(episode.question, list(episode.passages)), episode.cells))
