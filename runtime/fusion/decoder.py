"""The fusion decoder: reads question, entries and picture once, then writes or copies one token after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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

_DOUBT = 10.0
"""What the score of an entry's words is lessened by for each unit of ``Prompt.unlikeness``: training saw things that
the encoder knows and words that it had read, and so relies too little on what is nearest. Of things that training kept
aside 0.75 were read rightly with 5 to 20 (home, 0.72 without) and as many as without (signs); of questions that name
one of 518 things, without a picture, 0.90 with 4 or more (0.84 without)."""

_LEAST = 1e-9
"""Probability below which nothing goes on."""

_NEVER = (PAD, START, NONE, SEPARATOR)
"""No part of an answer. NONE says that there is none, which ``Generated.abstention`` holds."""

_FRAGMENT = "\ufffd"
"""What a sign of several bytes is shown as of which not all were written."""

PREFILL_OUTPUTS = ("keys", "values", "pointers", "mask")
STEP_OUTPUTS = ("words", "copies", "new_keys", "new_values")
"""Of the two graphs, which ``export`` makes."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """A question that was read.

    Attributes:
        prompt: what was read beside the picture; it says which token stands at which place.
        fixed: what every step is fed again: ``keys``, ``values``, ``pointers`` and ``mask``, all float32.
        doubted: float32 [m], the mask that answers are written with: entries count less the less they are alike.
    """

    prompt: Prompt
    fixed: dict[str, Floats]
    doubted: Floats


@dataclass(frozen=True)
class Generated:
    """An answer in words.

    Attributes:
        text: the answer; empty when there was no time for a token, or nothing answers.
        tokens: its ids, without START and END.
        confidence: the product of its tokens' probabilities, END's included: how probable this very answer is to the
            decoder. That is what beams look for the most of. Where it would end within a name or a number, that counts
            for going on to its end. Of an answer cut off, that of the tokens there are.
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
            fixed = dict(zip(PREFILL_OUTPUTS, self._prefill.run(feeds, PREFILL_OUTPUTS), strict=True))
        doubt = np.repeat(_DOUBT * prompt.unlikeness, prompt.tokens.shape[1])
        mask = fixed["mask"]
        return State(prompt, fixed, mask - np.pad(doubt, (0, len(mask) - len(doubt))))

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
        mask, judged, position = state.fixed["mask"], False, 0
        while position < self.spec.longest and not search.settled and left_ms() >= self.step_pace.ms:
            last = search.last()
            feeds = {
                **state.fixed,
                "last": last[:, 1].copy(),
                "position": np.array([position], np.int64),
                "past_keys": keys,
                "past_values": values,
                "mask": mask,
                # The picture's cells hold no words, so no copy goes on in them.
                "continues": np.pad(continues(search.source, last), ((0, 0), (0, cells), (0, 0))),
            }
            with self.step_pace.run():
                words, copies, new_keys, new_values = self._step.run(feeds, STEP_OUTPUTS)
            if not judged:  # whether anything answers is judged as training did, the words are chosen with doubt
                search.abstention = float(words[0, NONE])
                if search.abstention >= abstain_above:
                    return Generated("", (), 0.0, search.abstention, search.nothing.copied, complete=True)
                mask, judged = state.doubted, True
                # A first token without doubt is better than none: with time for one step alone it stands.
                if state.prompt.unlikeness.any() and left_ms() >= self.step_pace.ms:
                    continue
            search.advance(words, copies[:, : len(search.source)])
            keys, values = new_keys[:, search.parents], new_values[:, search.parents]
            position += 1
        best = search.best()
        return Generated(
            self._tokenizer.decode(list(best.tokens)).rstrip(_FRAGMENT).strip(),
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
        places: int64 [n], where the last token of a copied answer stands; None of one in the decoder's own words.
        ended: whether END was written.
    """

    tokens: tuple[int, ...]
    probability: float
    copied: Floats
    places: Ids | None = None
    ended: bool = False


class _Search:
    """Looks for the likeliest answer, following the likeliest few.

    An answer that begins with a copy stands word for word in an entry: it begins where a word does, goes on with what
    comes next there, and ends with a word (decoding within what there is, as De Cao et al. 2021, arXiv:2010.00904). One
    that begins in own words is free.

    Attributes:
        source: int64 [b * t], the tokens that stand there.
        nothing: the answer that has no token yet.
        parents: for each answer that goes on, which of those before the last step it continues.
        abstention: probability of NONE as the first token.
    """

    def __init__(self, prompt: Prompt, beams: int) -> None:
        self.source = prompt.source
        self.nothing = _Hypothesis((), 1.0, np.zeros(prompt.passages, np.float32))
        self.parents = [0]
        self.abstention = 0.0
        # What was asked is no answer: without this, some end in words of the question ("is it open?" - "open?").
        self._told = prompt.told
        self._within = prompt.within.reshape(-1)
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
        copies = copies * self._told
        rows = [self._chances(*row) for row in zip(self._open, words, copies, strict=True)]
        chances = np.stack(rows)
        scores = (chances * np.array([[hypothesis.probability] for hypothesis in self._open])).ravel()
        best = np.argpartition(-scores, self._beams)[: self._beams]
        best = best[np.lexsort((best, -scores[best]))]
        before, self._open, self.parents = self._open, [], []
        for place in best[scores[best] > 0].tolist():
            row, token = divmod(place, chances.shape[1])
            root = before[row]
            if token == END:
                self._ended.append(replace(root, probability=scores[place], ended=True))
            else:
                own = words[row, token] if token < words.shape[1] else 0.0
                self._open.append(self._longer(root, token, scores[place], own / chances[row, token], copies[row]))
                self.parents.append(row)

    def best(self) -> _Hypothesis:
        """The likeliest so far, ended or not."""
        found = [*self._ended, *self._open] or [self.nothing]
        return max(found, key=lambda hypothesis: hypothesis.probability)

    def _chances(self, root: _Hypothesis, words: Floats, copies: Floats) -> NDArray[np.float64]:
        """Probability of each next token, however it comes: float64 [v]."""
        if not root.tokens:
            copies = np.where(self._within, 0, copies)
        longest = max(len(words), int(self.source.max(initial=0)) + 1)
        chances = np.asarray(np.bincount(self.source, copies, longest), np.float64)
        chances[: len(words)] += words
        chances[_NEVER,] = 0
        if not root.tokens:
            chances[END] = 0  # an answer has a token
        elif root.places is not None:
            following = self._after(root.places)
            possible = np.zeros(longest, np.bool_)
            possible[self.source[following]] = True
            possible[END] = len(following) < len(root.places) or not self._within[following].all()
            ending = 0.0 if possible[END] else chances[END]
            chances[~possible] = 0
            chances *= 1 + ending / max(float(chances.sum()), _LEAST)  # who ends within a word means to end with it
        return chances

    def _longer(self, root: _Hypothesis, token: int, probability: float, own: float, copies: Floats) -> _Hypothesis:
        """With one more token, of whose probability the share ``own`` is in own words."""
        free = root.places is None and (bool(root.tokens) or own > 0.5)
        if root.places is not None:
            places = self._after(root.places)
        else:
            places = np.flatnonzero(self._told if free else self._told & ~self._within)
        places = places[self.source[places] == token]
        weights = copies[places] if copies[places].any() else np.ones(len(places))
        shares = np.bincount(self._owner[places], weights / weights.sum(), len(self.nothing.copied) + 1)[1:]
        copied = root.copied + np.float32(1 - own) * shares[: len(root.copied)].astype(np.float32)
        return _Hypothesis((*root.tokens, token), probability, copied, None if free else places)

    def _after(self, places: Ids) -> Ids:
        """The places after those, in the same entries."""
        following = places[places + 1 < len(self.source)] + 1
        same = self._told[following] & (self._owner[following] == self._owner[following - 1])
        return np.asarray(following[same], np.int64)
