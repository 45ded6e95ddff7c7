"""What the decoder is and how it learns, as it stands in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_ravlm.manifest import Few, Width

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]


class FusionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the fusion decoder.

    Attributes:
        steps: updates of the weights; 0 makes a bundle without a decoder.
        kind: how the picture comes in: ``attention`` lets question and answer attend to its cells, ``concat`` joins its
            mean to every token, ``add`` adds it.
        width: of all layers.
        heads: of all attentions.
        readers, writers: layers of the encoder and of the decoder.
        vocab: pieces of the tokenizer.
        entries: of a memory that a picture brings it to read, see ``manifest.FusionSpec``.
        longest: tokens of an answer, at most.
        batch: episodes per update.
        alone: questions per update beside them that a picture answers alone, mostly with yes or no; they are short, so
            many of them cost little.
        rate: AdamW's largest learning rate.
        warm_up: share of the steps in which the rate rises; then a cosine to zero.
        weight_decay: AdamW's, on matrices.
        clip: largest norm of the gradient.
        smoothing: share of the target that is spread over all words (Szegedy et al. 2016, arXiv:1512.00567).
        spots: weight of the loss on *where* is copied from, which episodes know.
        marks: weight of the loss on where every entry's own answer begins and ends, see ``model.marked``.
        dropout: of the layers.
        views: scenes that each thing is encoded in before the training.
        evaluate_every: steps between looks at the held-out episodes, each of which writes a checkpoint.
        patience: looks without a better held-out loss after which training stops.
        seed: of everything random.
    """

    steps: Annotated[int, Meta(ge=0)] = 0
    kind: Literal["attention", "concat", "add"] = "attention"
    width: Width = 192
    heads: Few = 6
    readers: Count = 2
    writers: Few = 2
    vocab: Annotated[int, Meta(ge=512)] = 4096
    entries: Few = 5
    longest: Width = 24
    batch: Annotated[int, Meta(ge=2)] = 48
    alone: Annotated[int, Meta(ge=0)] = 0
    rate: Positive = 1e-3
    warm_up: Share = 0.05
    weight_decay: Annotated[float, Meta(ge=0)] = 0.05
    clip: Positive = 1.0
    smoothing: Share = 0.02
    spots: Annotated[float, Meta(ge=0)] = 0.5
    marks: Annotated[float, Meta(ge=0)] = 0.5
    dropout: Share = 0.0
    views: Count = 3
    evaluate_every: Count = 100
    patience: Count = 8
    seed: int = 0
