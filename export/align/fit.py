"""Fitting the meaning head on cut-outs with words, and on what an ImageNet classifier sees in them.

Two losses: pictures and their texts find each other within a batch (InfoNCE, van den Oord et al. 2018,
arXiv:1807.03748, in both directions as in CLIP, Radford et al. 2021, arXiv:2103.00020), and the head points where
ConSE does (``classes``). Encoder and text student stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_ravlm.export.align.classes import Embed, Vectors, class_vectors, seen
from edge_ravlm.export.align.head import Meaning
from edge_ravlm.export.align.settings import AlignSettings
from edge_ravlm.export.data.captioned import Captioned
from edge_ravlm.export.data.scenes import Material, background
from edge_ravlm.export.judging import prepared
from edge_ravlm.export.students.image import pooled
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.backends import open_session

Look = Callable[[Sequence[Pixels]], Vectors]
"""Pictures uint8 [h, w, 3] BGR of any size -> one float32 row each."""

SIDE = 260
"""Of the views, in pixels."""

_PLAIN = 224
_SIZES, _CLEAN = (0.55, 0.95), 0.85
_SAME = 0.98
"""Cosine from which two texts say the same, so that neither is the other's wrong answer."""


@contextmanager
def looking(model: onnx.ModelProto, shape: Preprocess, output: str) -> Iterator[Look]:
    """An output of an image graph over pictures of any size, all of a call at once."""
    session = open_session(model.SerializeToString(), Model(file=output), threads=0)
    try:
        yield lambda pictures: session.run({"image": np.concatenate(prepared(pictures, shape))}, (output,))[0]
    finally:
        session.close()


def clean(cut_out: Pixels) -> Pixels:
    """A cut-out large in the middle of a light grey picture, uint8 [SIDE, SIDE, 3] BGR."""
    return _drawn(np.full((SIDE, SIDE, 3), _PLAIN, np.uint8), cut_out, _CLEAN, (0.5, 0.5))


def view(cut_out: Pixels, number: int, backgrounds: Sequence[Pixels], seed: int) -> Pixels:
    """View ``number``, always the same one: 0 is ``clean``, then plain colours and photographs take turns."""
    if number == 0:
        return clean(cut_out)
    rng = np.random.default_rng((seed, number))
    if number % 2:
        under = np.broadcast_to(rng.integers(90, 256, 3).astype(np.uint8), (SIDE, SIDE, 3))
    else:
        photo = background(Material([], backgrounds), rng)
        under = np.asarray(cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    mirrored = cut_out[:, ::-1] if rng.random() < 0.5 else cut_out
    return _drawn(under, mirrored, rng.uniform(*_SIZES), (rng.uniform(), rng.uniform()))


@dataclass(frozen=True)
class Observed:
    """What a head is fitted on; the rows are things.

    Attributes:
        features: pooled float32 [things, views, channels] of unit length.
        goals: float32 [things, dim], what the classifier sees in each.
        said: float32 [texts, dim] of each thing, its caption first.
    """

    features: Tensor
    goals: Tensor
    said: Sequence[Vectors]

    def of(self, rows: NDArray[np.int64]) -> Observed:
        """Some of the things."""
        return Observed(self.features[rows], self.goals[rows], [self.said[row] for row in rows])


def observe(
    things: Sequence[Captioned],
    backgrounds: Sequence[Pixels],
    *,
    query: Tensor,
    tokens: Look,
    logits: Look,
    embed: Embed,
    views: int,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> Observed:
    """Look at things with the frozen encoder and with the classifier, and read their words.

    Args:
        things: with their words.
        backgrounds: uint8 [h, w, 3] BGR photographs that some views stand on.
        query: float32 [channels], the image student's.
        tokens: the frozen encoder's, float32 [n, cells, channels].
        logits: the ImageNet classifier's, float32 [n, 1000].
        embed: the text student.
        views: of each thing.
        seed: of the views.
        advance: called after each thing.
    """
    features, sights = [], []
    for index, thing in enumerate(things):
        drawn = [view(thing.pixels, number, backgrounds, seed * 1_000_003 + index) for number in range(views)]
        features.append(pooled(torch.from_numpy(tokens(drawn)), query))
        sights.append(logits(drawn[:1])[0])
        advance()
    goals = torch.from_numpy(seen(np.stack(sights), class_vectors(embed)))
    said = embed([text for thing in things for text in thing.texts])
    ends = np.cumsum([len(thing.texts) for thing in things])[:-1]
    return Observed(torch.stack(features), goals, np.split(said, ends))


def fit(observed: Observed, query: Tensor, settings: AlignSettings, seed: int = 0) -> Meaning:
    """Fit a head; the same arguments give the same head.

    Args:
        observed: what to learn from.
        query: float32 [channels] that pooled the features.
        settings: of the training.
        seed: of weights and batches.
    """
    features, goals, said = observed.features, observed.goals, observed.said
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Meaning(query, settings.hidden, goals.shape[1]).train()
        centre, spread = features.mean((0, 1)), features.std((0, 1)).mean()
        optimizer = torch.optim.AdamW(head.parameters(), settings.rate, weight_decay=settings.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.steps)
        for _ in range(settings.steps):
            rows = rng.integers(len(said), size=settings.batch)
            picked = features[rows, rng.integers(features.shape[1], size=settings.batch)]
            texts = torch.from_numpy(np.stack([_one(said[row], rng) for row in rows]))
            points = _noisy(head, (picked - centre) / spread, settings.dropout)
            loss = contrast(points, texts, settings.temperature)
            loss = loss + settings.classes * (1 - (points * goals[rows]).sum(1)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    with torch.no_grad():  # the head reads plain features from here on
        head.widen.weight.div_(spread)
        head.widen.bias.sub_(head.widen.weight @ centre)
    return head.eval().requires_grad_(requires_grad=False)


def contrast(points: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """InfoNCE of pictures and texts, float32 [n, dim] each of unit length, in both directions; a scalar."""
    scores = points @ texts.T / temperature
    same = (texts @ texts.T > _SAME).fill_diagonal_(fill_value=False)
    scores = scores.masked_fill(same, -torch.inf)
    own = torch.arange(len(scores))
    return (nn.functional.cross_entropy(scores, own) + nn.functional.cross_entropy(scores.T, own)) / 2


def _one(texts: Vectors, rng: np.random.Generator) -> Vectors:
    """The caption more often than the other words."""
    picked: Vectors = texts[0 if rng.random() < 0.6 else int(rng.integers(len(texts)))]
    return picked


def _noisy(head: Meaning, features: Tensor, dropout: tuple[float, float]) -> Tensor:
    drop = nn.functional.dropout
    hidden = drop(nn.functional.relu(head.widen(drop(features, dropout[0]))), dropout[1])
    return nn.functional.normalize(head.project(hidden), dim=1)


def _drawn(under: Pixels, cut_out: Pixels, size: float, place: tuple[float, float]) -> Pixels:
    """The cut-out on a picture, its longer side ``size`` of the picture's, at shares of the room that is left."""
    side = len(under)
    scale = side * size / max(cut_out.shape[:2])
    width, height = (max(1, round(n * scale)) for n in cut_out.shape[1::-1])
    alpha = cut_out[..., 3:].astype(np.float32) / 255
    weighed = np.concatenate([cut_out[..., :3] * alpha, alpha], axis=2)
    piece = cv2.resize(weighed, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x, y = round((side - width) * place[0]), round((side - height) * place[1])
    out = under.astype(np.float32)
    out[y : y + height, x : x + width] *= 1 - piece[..., 3:]
    out[y : y + height, x : x + width] += piece[..., :3]
    return np.asarray(np.clip(np.rint(out), 0, 255), np.uint8)
