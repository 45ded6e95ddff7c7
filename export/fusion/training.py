"""The decoder's training loop over episodes."""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edge_ravlm.errors import DataError
from edge_ravlm.export.distil.checkpoint import (
    CHECKPOINT,
    LOG,
    Log,
    Standing,
    Stored,
    copied,
    moments,
    put_back,
    read,
    write,
)
from edge_ravlm.export.fusion.batches import Batch, collated
from edge_ravlm.export.fusion.episodes import Episode, Episodes, Texts
from edge_ravlm.export.fusion.model import FusionDecoder, Read, loss, marked, spread
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.schedule import warm_cosine
from edge_ravlm.runtime.fusion.layout import NONE, PAD

Done = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

COLUMNS = ("step", "loss", "held_out", "exact", "abstains", "false_abstention", "rate", "seconds")

_HELD_OUT_EPISODES = 480

_ALONE = 0.7
"""Weight of the loss on ``FusionSettings.alone``."""


@dataclass(frozen=True)
class Lesson:
    """What there is to learn from.

    Attributes:
        episodes: to learn.
        held_out: of other things, to look at.
        tokenizer: the decoder's.
        texts: the text encoder that ships.
    """

    episodes: Episodes
    held_out: Episodes
    tokenizer: Tokenizer
    texts: Texts


def train(
    decoder: FusionDecoder, lesson: Lesson, settings: FusionSettings, folder: Path, progress: Done | None = None
) -> FusionDecoder:
    """Teach the decoder to read.

    A run that was interrupted goes on from the checkpoint in ``folder`` and ends as if it had not been.

    Args:
        decoder: changed in place.
        lesson: what to learn from.
        settings: of the training.
        folder: for checkpoints and the log (``log.csv``).
        progress: told after every step.

    Returns:
        The decoder with the weights of the lowest held-out loss, in ``eval`` mode.

    Raises:
        DataError: a checkpoint of another run, or a loss that is no number any more.
        StorageError: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _Training(decoder, lesson, settings, folder).run(progress)


@dataclass(frozen=True)
class Figures:
    """How a decoder reads held-out episodes, word by word with the right words before.

    Attributes:
        loss: as in training.
        exact: share of answerable episodes in which every word is right.
        abstains: share of unanswerable ones in which NONE is the likeliest first word.
        false_abstention: the same of answerable ones.
        by_kind: share of right episodes, by kind.
    """

    loss: float
    exact: float
    abstains: float
    false_abstention: float
    by_kind: dict[str, float]


@torch.no_grad()
def judge(decoder: FusionDecoder, batches: Sequence[Batch]) -> Figures:
    """See ``Figures``."""
    decoder.eval()
    right, unknown, silent, losses = [], [], [], []
    kinds = [kind for batch in batches for kind in batch.kinds]
    for batch in batches:
        words, copies, _ = predicted(decoder, batch)
        losses.append(float(loss(words, copies, batch.source, batch.wanted, batch.right, 0.0, 0.0)))
        best = spread(words, copies, batch.source).argmax(2)
        right += ((best == batch.wanted) | (batch.wanted == PAD)).all(1).tolist()
        unknown += (batch.wanted[:, 0] == NONE).tolist()
        silent += (best[:, 0] == NONE).tolist()
    correct, nothing, quiet = (np.array(column, bool) for column in (right, unknown, silent))
    by_kind = defaultdict(list)
    for kind, good in zip(kinds, correct, strict=True):
        by_kind[kind].append(bool(good))
    return Figures(
        float(np.mean(losses)),
        _share(correct[~nothing]),
        _share(quiet[nothing]),
        _share(quiet[~nothing]),
        {kind: _share(np.array(found)) for kind, found in sorted(by_kind.items())},
    )


def predicted(decoder: FusionDecoder, batch: Batch) -> tuple[Tensor, Tensor, Read]:
    """``words`` and ``copies`` of every step, with the right words before it, and what was read.

    See ``FusionDecoder.write``.
    """
    n, a = batch.last.shape
    read_ = decoder.read(batch.tokens, batch.roles, batch.features, batch.products, batch.cells, batch.places)
    position = torch.arange(a, device=batch.last.device)
    words, copies, _, _ = decoder.write(
        batch.last, position, decoder.nothing(n), decoder.nothing(n), read_, batch.continues
    )
    return words, copies, read_


class _Training:
    """One run; ``standing``, ``decoder``, ``optimizer`` and ``best`` are what a checkpoint holds."""

    def __init__(self, decoder: FusionDecoder, lesson: Lesson, settings: FusionSettings, folder: Path) -> None:
        self.decoder, self.lesson, self.settings, self.folder = decoder, lesson, settings, folder
        shapes = {name: list(tensor.shape) for name, tensor in decoder.state_dict().items()}
        whole = [msgspec.to_builtins(settings), shapes, lesson.tokenizer.to_str()]
        self.run_id = hashlib.sha256(msgspec.json.encode(whole, order="deterministic")).hexdigest()
        matrices = [part for part in decoder.parameters() if part.ndim > 1]
        single = [part for part in decoder.parameters() if part.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": single, "weight_decay": 0.0}],
            lr=settings.rate,
            betas=(0.9, 0.98),
        )
        self.standing, self.best = Standing(), copied(decoder)

    def run(self, progress: Done | None) -> FusionDecoder:
        torch.manual_seed(self.settings.seed)
        stored = read(self.folder / CHECKPOINT, self.run_id)
        if stored is not None:
            self._restore(stored)
        if not self._ended:
            self._learn(progress)
        self.decoder.load_state_dict(self.best)
        return self.decoder.eval()

    @property
    def _ended(self) -> bool:
        return self.standing.step >= self.settings.steps or self.standing.stale >= self.settings.patience

    def _learn(self, progress: Done | None) -> None:
        settings, log = self.settings, Log(self.folder / LOG, self.standing.step, COLUMNS)
        held_out = [
            self._batch(self.lesson.held_out, -1 - number) for number in range(-(-_HELD_OUT_EPISODES // settings.batch))
        ]
        steps = range(self.standing.step, settings.steps)
        for step, (batch, alone) in zip(steps, self._ahead(steps), strict=True):
            began = time.perf_counter()
            figures = self._update(batch, alone, step)
            self.standing.step = step + 1
            looks = self.standing.step % settings.evaluate_every == 0 or self.standing.step == settings.steps
            if looks:
                found = judge(self.decoder, held_out)
                self._keep_if_best(found.loss)
                figures |= {"held_out": found.loss, "exact": found.exact, "abstains": found.abstains}
                figures["false_abstention"] = found.false_abstention
            self.standing.seconds += time.perf_counter() - began
            log.add(step=step + 1, **figures, seconds=self.standing.seconds)
            if looks:
                self._save()
            if progress is not None:
                progress(step + 1, settings.steps)
            if self._ended:
                break

    def _batch(self, episodes: Episodes, step: int) -> Batch:
        """That of a step; negative ones are of the held-out episodes."""
        return self._collated([episodes.draw(rng) for rng in self._rngs(step, self.settings.batch)])

    def _alone(self, step: int) -> Batch | None:
        """What a step learns beside it; see ``FusionSettings.alone``."""
        rngs = self._rngs(step, self.settings.alone, "alone")
        return self._collated([self.lesson.episodes.alone(rng) for rng in rngs]) if rngs else None

    def _rngs(self, step: int, count: int, what: str = "") -> list[np.random.Generator]:
        named = list(what.encode())
        return [np.random.default_rng((self.settings.seed, step + 2**31, row, *named)) for row in range(count)]

    def _collated(self, drawn: Sequence[Episode]) -> Batch:
        shape = self.decoder.shape
        return collated(drawn, self.lesson.tokenizer, self.lesson.texts, shape.dim, shape.longest)

    def _ahead(self, steps: range) -> Iterator[tuple[Batch, Batch | None]]:
        """The steps' batches, those of one made while the last one's are learnt."""

        def made(step: int) -> tuple[Batch, Batch | None]:
            return self._batch(self.lesson.episodes, step), self._alone(step)

        with ThreadPoolExecutor(1, "episodes") as pool:
            waiting = pool.submit(made, steps.start)
            for step in steps:
                batches = waiting.result()
                if step + 1 < steps.stop:
                    waiting = pool.submit(made, step + 1)
                yield batches

    def _update(self, batch: Batch, alone: Batch | None, step: int) -> dict[str, float]:
        settings = self.settings
        self.decoder.train()
        words, copies, read_ = predicted(self.decoder, batch)
        found = loss(words, copies, batch.source, batch.wanted, batch.right, settings.smoothing, settings.spots)
        found = found + settings.marks * marked(self.decoder, read_, batch.marks)
        if alone is not None:
            words, copies, _ = predicted(self.decoder, alone)
            said = loss(words, copies, alone.source, alone.wanted, alone.right, settings.smoothing, 0.0)
            found = found + _ALONE * said
        value = float(found.detach())
        if not math.isfinite(value):
            raise DataError(
                f"training step {step + 1}", expected="a finite loss", got=f"{value}", do="lower fusion.rate"
            )
        torch.autograd.backward(found)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), settings.clip)
        rate = settings.rate * warm_cosine(step, settings.steps, settings.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": value, "rate": rate}

    def _keep_if_best(self, loss_now: float) -> None:
        if self.standing.best is None or loss_now < self.standing.best:
            self.standing.best, self.standing.stale, self.best = loss_now, 0, copied(self.decoder)
        else:
            self.standing.stale += 1

    def _save(self) -> None:
        groups = {
            "decoder": self.decoder.state_dict(),
            "best": self.best,
            "optimizer": moments(self.optimizer),
            "rng": {"cpu": torch.get_rng_state()},
        }
        write(self.folder / CHECKPOINT, self.run_id, groups, self.standing)

    def _restore(self, stored: Stored) -> None:
        self.standing, self.best = stored.standing, dict(stored.groups["best"])
        self.decoder.load_state_dict(stored.groups["decoder"])
        put_back(self.optimizer, stored.groups.get("optimizer", {}))
        torch.set_rng_state(stored.groups["rng"]["cpu"])


def _share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else float("nan")
