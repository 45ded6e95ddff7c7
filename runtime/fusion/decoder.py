"""The fusion decoder: reads question, entries and picture once, then writes or copies one token after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.deadline import Pace
from edge_ravlm.runtime.encoders import open_tokenizer
from edge_ravlm.runtime.fusion.layout import (
    END,
    NONE,
    PAD,
    SEPARATOR,
    SPECIAL,
    START,
    Passage,
    Prompt,
    continues,
    lay_out,
)

MOST_BEAMS = 4

_NEVER = (PAD, START, NONE, SEPARATOR)
"""No part of an answer. NONE says that there is none, which ``Generated.abstention`` holds."""

_READ = ("keys", "values", "pointers", "mask")
_WRITTEN = ("words", "copies", "new_keys", "new_values")

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """A question that was read.

    Attributes:
        prompt: what was read beside the picture; it says which token stands at which place.
        fixed: what every step is fed again: ``keys``, ``values``, ``pointers`` and ``mask``, all float32.
    """

    prompt: Prompt
    fixed: dict[str, Floats]


@dataclass(frozen=True)
class Generated:
    """An answer in words.

    Attributes:
        text: the answer; empty when there was no time for a token, or nothing answers.
        tokens: its ids, without START and END.
        confidence: the product of its tokens' probabilities, END's included: how probable this very answer is to the
            decoder. That is what beams look for the most of. Of an answer cut off, that of the tokens there are.
        abstention: probability that nothing answers (NONE as the first token).
        weights: float32 [passages], the share of the answer that was copied from each; what is missing to 1 is in the
            decoder's own words.
        complete: whether it came to its end; else time or ``longest`` cut it off.
    """

    text: str
    tokens: tuple[int, ...]
    confidence: float
    abstention: float
    weights: Floats
    complete: bool


class FusionDecoder:
    """Question, entries and picture -> words.

    Args:
        bundle: an opened bundle.
        flavor: which of its quantization flavours; one that has a decoder.
        threads: CPU threads that read; 0 leaves the choice to the backend. One writes.

    Attributes:
        spec: the bundle's constants of it.
        prefill_pace, step_pace: what reading and one step take here.
    """

    def __init__(self, bundle: Bundle, flavor: str, threads: int = 0) -> None:
        spec, models = bundle.manifest.fusion, bundle.manifest.flavor(flavor).fusion
        if spec is None or models is None:
            raise no_decoder(bundle, flavor)
        self.spec = spec
        self._dim = bundle.manifest.image_space.dim
        self._tokenizer = open_tokenizer(bundle, spec.tokenizer)
        found = [self._tokenizer.token_to_id(name) for name in SPECIAL]
        if found != list(range(len(SPECIAL))):
            raise BundleError(
                bundle.where,
                expected=f"{', '.join(SPECIAL)} as the first tokens of {spec.tokenizer}",
                got=", ".join(map(str, found)),
                do="export the bundle again",
            )
        self.prefill_pace, self.step_pace = Pace(), Pace()
        self._prefill = open_session(bundle.read(models.prefill.file), models.prefill, threads, bundle)
        # One token is too little work to share: a second thread takes a core, and a step the same time (1.41 ms).
        self._step = open_session(bundle.read(models.step.file), models.step, 1, bundle)

    def lay_out(self, question: str, passages: list[Passage]) -> Prompt:
        """A question and the entries found for it, best first, as ``prefill`` takes them."""
        return lay_out(self._tokenizer, question, passages, self._dim)

    def prefill(self, prompt: Prompt, cells: Floats) -> State:
        """Read a question; the answers to it start from here.

        Args:
            prompt: from ``lay_out``.
            cells: float32 [1, cells, dim], the image encoder's tokens.
        """
        feeds: dict[str, NDArray[Any]] = {
            "tokens": prompt.tokens,
            "roles": prompt.roles,
            "features": prompt.features,
            "products": prompt.products,
            "cells": cells,
        }
        with self.prefill_pace.run():
            return State(prompt, dict(zip(_READ, self._prefill.run(feeds, _READ), strict=True)))

    def generate(
        self,
        state: State,
        *,
        beams: int = 1,
        left_ms: Callable[[], float] = lambda: math.inf,
        abstain_above: float = math.inf,
    ) -> Generated:
        """Answer.

        Args:
            state: from ``prefill``.
            beams: how many answers are followed at once, 1 to MOST_BEAMS; 1 takes the likeliest token each time.
            left_ms: what is left of the time. It is asked before each step; where a step usually takes longer than
                that, the best answer so far is returned.
            abstain_above: abstention from which no answer is looked for.
        """
        if not 1 <= beams <= MOST_BEAMS:
            raise UsageError("beams", expected=f"1 to {MOST_BEAMS}", got=str(beams), do="leave it out for the fastest")
        search = _Search(state.prompt, beams)
        cells = len(state.fixed["mask"]) - len(search.source)
        keys = np.empty((self.spec.layers, 1, self.spec.heads, 0, self.spec.width // self.spec.heads), np.float32)
        values = keys
        for position in range(self.spec.longest):
            if search.settled or left_ms() < self.step_pace.ms:
                break
            last = search.last()
            feeds = {
                "last": last[:, 1].copy(),
                "position": np.array([position], np.int64),
                "past_keys": keys,
                "past_values": values,
                # The picture's cells hold no words, so no copy goes on in them.
                "continues": np.pad(continues(search.source, last), ((0, 0), (0, cells), (0, 0))),
                **state.fixed,
            }
            with self.step_pace.run():
                words, copies, keys, values = self._step.run(feeds, _WRITTEN)
            # What was asked is no answer: without this, some end in words of the question ("is it open?" - "open?").
            search.advance(words, copies[:, : len(search.source)] * search.told)
            if search.abstention >= abstain_above:
                return Generated("", (), 0.0, search.abstention, search.nothing.copied, complete=True)
            keys, values = keys[:, search.parents], values[:, search.parents]
        best = search.best()
        return Generated(
            self._tokenizer.decode(list(best.tokens)).strip(),
            best.tokens,
            float(best.probability) if best.tokens else 0.0,
            search.abstention,
            best.copied / np.float32(max(1, len(best.tokens))),
            best.ended,
        )

    def close(self) -> None:
        """Release the models."""
        self._prefill.close()
        self._step.close()


def no_decoder(bundle: Bundle, flavor: str) -> BundleError:
    """What is raised where words are wanted of a bundle that has none."""
    return BundleError(
        bundle.where,
        expected=f"a fusion decoder in flavour {flavor}",
        got="none",
        do="take a bundle with one, or ask without generating",
    )


@dataclass(frozen=True)
class _Hypothesis:
    """An answer so far.

    Attributes:
        tokens: its ids.
        probability: the product of theirs, and of END's where it ended.
        copied: float32 [passages], how many of its tokens were copied from each.
        ended: whether END was written.
    """

    tokens: tuple[int, ...]
    probability: float
    copied: Floats
    ended: bool = False


class _Search:
    """Looks for the likeliest answer, following the likeliest few.

    Attributes:
        source, told: int64 and bool [b * t], the tokens that stand there, and whether they can be copied.
        nothing: the answer that has no token yet.
        parents: for each answer that goes on, which of those before the last step it continues.
        abstention: probability of NONE as the first token.
    """

    def __init__(self, prompt: Prompt, beams: int) -> None:
        self.source, self.told = prompt.source, prompt.told
        self.nothing = _Hypothesis((), 1.0, np.zeros(prompt.passages, np.float32))
        self.parents = [0]
        self.abstention = 0.0
        self._owner = np.repeat(np.arange(len(prompt.tokens)), prompt.tokens.shape[1])
        self._beams = beams
        self._open, self._ended = [self.nothing], list[_Hypothesis]()

    @property
    def settled(self) -> bool:
        """Whether the best answer has ended: no further token makes an open one likelier."""
        return not self._open or any(ended.probability >= self._open[0].probability for ended in self._ended)

    def last(self) -> Ids:
        """The last two tokens of each open answer, int64 [n, 2]."""
        return np.array([(PAD, START, *hypothesis.tokens)[-2:] for hypothesis in self._open], np.int64)

    def advance(self, words: Floats, copies: Floats) -> None:
        """Write one more token.

        Args:
            words: float32 [n, v], probability of each token in the decoder's own words.
            copies: float32 [n, b * t], probability of copying each place.
        """
        chances = np.stack([self._mixed(*row) for row in zip(words, copies, strict=True)])
        if self._open == [self.nothing]:
            self.abstention = float(chances[0, NONE])
            chances[:, END] = 0  # an answer has a token
        chances[:, _NEVER] = 0
        scores = (chances * np.array([[hypothesis.probability] for hypothesis in self._open])).ravel()
        best = np.argpartition(-scores, self._beams)[: self._beams]
        best = best[np.lexsort((best, -scores[best]))]
        before, self._open, self.parents = self._open, [], []
        for place in best[scores[best] > 0].tolist():
            row, token = divmod(place, chances.shape[1])
            root = before[row]
            if token == END:
                self._ended.append(_Hypothesis(root.tokens, scores[place], root.copied, ended=True))
            else:
                copied = root.copied + self._copied(copies[row], token) / np.float32(chances[row, token])
                self._open.append(_Hypothesis((*root.tokens, token), scores[place], copied))
                self.parents.append(row)

    def best(self) -> _Hypothesis:
        """The likeliest so far, ended or not."""
        found = [*self._ended, *self._open] or [self.nothing]
        return max(found, key=lambda hypothesis: hypothesis.probability)

    def _mixed(self, words: Floats, copies: Floats) -> NDArray[np.float64]:
        """Probability of each token, however it comes: float64 [v]."""
        longest = max(len(words), int(self.source.max(initial=0)) + 1)
        chances = np.asarray(np.bincount(self.source, copies, longest), np.float64)
        chances[: len(words)] += words
        return chances

    def _copied(self, copies: Floats, token: int) -> Floats:
        """How probable it is to copy a token from each passage, float32 [passages]."""
        found = np.where(self.source == token, copies, 0)
        return np.bincount(self._owner, found)[1 : 1 + len(self.nothing.copied)].astype(np.float32)
