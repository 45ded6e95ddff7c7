"""How a student learns: everything but the pictures, as it stands in a recipe."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Weight = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class DistilSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one distillation.

    Attributes:
        steps: updates of the weights, at most.
        batch: pictures per update, over all processes.
        accumulate: parts that each process takes its share of a batch in; saves memory, but a picture is then compared
            with those of its part only.
        restart: step at which the rate and ``early`` begin again (Loshchilov & Hutter 2017, arXiv:1608.03983); 0 for
            never.
        rate: AdamW's largest learning rate, reached after the warm-up; then a cosine to zero, in both cycles.
        warm_up: share of a cycle's steps in which the rate rises.
        weight_decay: AdamW's, on kernels and projections.
        clip: largest norm of the gradient.
        cosine: weight of 1 - cosine between the student's embedding and the teacher's.
        relational: weight of the difference between their similarity matrices.
        teacher_head: imitate the teacher's embedding through a projection of its own, which is thrown away, instead of
            in the embedding: the backbone keeps what the teacher knows, and the embedding is free for ``pairs``.
        teacher_every: the teacher, whose look is a third of a step's time, sees every n-th picture only.
        early_side: pixels of a smaller side that the student begins with, which is faster; 0 for none.
        early: share of a cycle's steps that it does.
        tokens: weight of 1 - cosine between the cells of their grids, through a linear map that is thrown away.
        pairs: weight of the contrastive loss between pictures that show the same thing: makes a student that looks past
            background and light, which its teacher may not.
        pairs_temperature: of that loss.
        recent: embeddings of earlier batches that it compares with as well, once the last warm-up is over.
        proxies: weight of the loss against one learnt direction per thing, which compares each picture with all things
            at once and is thrown away: a batch alone has few that look alike. With a restart it counts from there on:
            each direction starts where its thing was last seen, and anywhere without one.
        proxies_temperature: of that loss.
        proxies_rate: of the directions, relative to ``rate``.
        frozen: convolutions, counted from the picture on, that learn no more after the restart: they see edges and
            colours, and their gradients are a third of the student's time (nine of EfficientNet-Lite0's).
        captions: weight of the contrastive loss against the captions' text embeddings, where there are captions.
        temperature: of that loss.
        whitening: exponent of the teacher's whitening: 0 keeps the spread of its directions, 1 levels it.
        fit_pictures: how many pictures the whitening and the student's first projection are fitted on.
        ridge: damping of that fit, as a share of the features' mean variance.
        evaluate_every: steps between looks at the held-out part, each of which writes a checkpoint.
        patience: looks without a better held-out loss after which training stops.
        bf16: autocast to bfloat16; on a CPU without bfloat16 instructions that is several times slower.
        device: "cpu" or "cuda"; under ``torchrun`` each process takes its own GPU.
        workers: threads that compose and read pictures ahead.
        seed: of everything random.
    """

    steps: Count = 300
    batch: Annotated[int, Meta(ge=2)] = 32
    accumulate: Count = 1
    restart: Annotated[int, Meta(ge=0)] = 0
    rate: Positive = 3e-4
    warm_up: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    weight_decay: Weight = 0.01
    clip: Positive = 1.0
    cosine: Weight = 1.0
    relational: Weight = 1.0
    teacher_head: bool = False
    teacher_every: Count = 1
    early_side: Annotated[int, Meta(ge=0)] = 0
    early: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    tokens: Weight = 0.5
    pairs: Weight = 0.0
    pairs_temperature: Positive = 0.1
    recent: Annotated[int, Meta(ge=0)] = 0
    proxies: Weight = 0.0
    proxies_temperature: Positive = 0.05
    proxies_rate: Positive = 20.0
    frozen: Annotated[int, Meta(ge=0)] = 0
    captions: Weight = 0.5
    temperature: Positive = 0.07
    whitening: Annotated[float, Meta(ge=0, le=1)] = 0.5
    fit_pictures: Count = 1024
    ridge: Positive = 1e-2
    evaluate_every: Count = 50
    patience: Count = 4
    bf16: bool = False
    device: str = "cpu"
    workers: Count = 1
    seed: int = 0

    def cycle(self, step: int) -> range:
        """The steps of the cycle that one belongs to."""
        if self.restart and step < self.restart:
            return range(min(self.restart, self.steps))
        return range(self.restart, self.steps)

    def is_early(self, step: int) -> bool:
        """Whether the student sees small pictures in it."""
        cycle = self.cycle(step)
        return self.early_side > 0 and step - cycle.start < round(self.early * len(cycle))
