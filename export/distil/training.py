"""The training loop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from edge_ravlm.errors import DataError, UsageError
from edge_ravlm.export.distil.checkpoint import (
    CHECKPOINT,
    LOG,
    STUDENT,
    Log,
    Standing,
    Stored,
    copied,
    moments,
    put_back,
    read,
    write,
)
from edge_ravlm.export.distil.feed import Inputs, Sides, feed
from edge_ravlm.export.distil.losses import (
    caption_loss,
    cosine_loss,
    pair_loss,
    proxy_loss,
    relational_loss,
    token_loss,
)
from edge_ravlm.export.distil.pictures import Batch, Pictures
from edge_ravlm.export.distil.settings import DistilSettings
from edge_ravlm.export.distil.targets import Texts, aim_at, caption_vectors, fit_inputs, look, start, token_map
from edge_ravlm.export.distil.world import World, joined
from edge_ravlm.export.schedule import warm_cosine
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.students.whitening import Whitening
from edge_ravlm.export.teachers import ImageTeacher

Done = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

Losses = dict[str, Tensor]

_INDIFFERENT = ("device", "workers")
"""Settings that do not change what is learnt: a run may go on with others."""


def distil(
    student: ImageStudent,
    teacher: ImageTeacher,
    pictures: Pictures,
    settings: DistilSettings,
    folder: Path,
    *,
    texts: Texts | None = None,
    progress: Done | None = None,
) -> ImageStudent:
    """Teach the student to see as the teacher sees.

    A run that was interrupted goes on from the checkpoint in ``folder`` and ends as if it had not been; one that had
    ended returns its student at once. Under ``torchrun`` every process calls this with equal arguments.

    Args:
        student: changed in place.
        teacher: frozen.
        pictures: to learn from; need no labels.
        settings: of the training.
        folder: for checkpoints, the log (``log.csv``) and the best weights (``student.safetensors``).
        texts: embeds captions; where the pictures have some, their embeddings are aimed at too.
        progress: told after every step.

    Returns:
        The student with the weights of the lowest held-out loss, in ``eval`` mode.

    Raises:
        DataError: pictures, captions or a checkpoint that cannot be used, or a loss that is no number any more.
        UsageError: a batch that cannot be shared evenly, or a device that is not there.
        StorageError: the disk refused.
    """
    with joined(settings.device) as world:
        return _Training(student, teacher, pictures, settings, folder, world, texts).run(progress)


def fingerprint(student: ImageStudent, teacher: ImageTeacher, settings: DistilSettings) -> str:
    """Names a run: equal for equal settings, teacher and kind of student."""
    chosen = {k: v for k, v in msgspec.to_builtins(settings).items() if k not in _INDIFFERENT}
    shapes = {name: list(tensor.shape) for name, tensor in student.state_dict().items()}
    whole = [chosen, teacher.name, teacher.side, teacher.dim, student.side, shapes]
    return hashlib.sha256(msgspec.json.encode(whole, order="deterministic")).hexdigest()


def learning_rate(settings: DistilSettings, step: int) -> float:
    """Of the update after ``step`` updates."""
    cycle = settings.cycle(step)
    return settings.rate * warm_cosine(step - cycle.start, len(cycle), settings.warm_up)


class _Learner(nn.Module):
    """The student, and what is thrown away: maps from its features and its cells to the teacher's.

    Args:
        student: that ships.
        head: from the centred features to the teacher's embedding; None imitates it in the student's own.
        cell_map: from the student's cells to the teacher's; None where they do not count.
    """

    def __init__(self, student: ImageStudent, head: Tensor | None, cell_map: Tensor | None) -> None:
        super().__init__()
        self.student = student
        self.head = None if head is None else nn.Parameter(head)
        self.cell_map = None if cell_map is None else nn.Parameter(cell_map)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [n, h, w, 3] -> embedding [n, dim], the same as the teacher's, cells as the teacher's [n, t, c]."""
        features, tokens = self.student.features(pixels)
        embedding = self.student.embedding(features)
        alike = embedding if self.head is None else functional.normalize((features - self.student.centre) @ self.head)
        return embedding.float(), alike.float(), (tokens if self.cell_map is None else tokens @ self.cell_map).float()


@dataclass(frozen=True)
class _HeldOut:
    """Batches of pixels [n, side, side, 3], things [n], whitened teacher embeddings and captions' vectors [n, dim]."""

    batches: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]]


@dataclass
class _Recent:
    """The latest embeddings without gradient, float32 [m, dim], and what they show, int64 [m]."""

    embeddings: Tensor
    things: Tensor

    def add(self, embeddings: Tensor, things: Tensor, most: int) -> None:
        """Keeps the last ``most``."""
        kept = slice(max(0, len(self.things) + len(things) - most), None)
        self.embeddings = torch.cat([self.embeddings, embeddings.detach()])[kept]
        self.things = torch.cat([self.things, things])[kept]


class _Training:
    """One run; ``standing``, ``learner``, ``proxies``, ``optimizer`` and ``recent`` are what a checkpoint holds."""

    def __init__(
        self,
        student: ImageStudent,
        teacher: ImageTeacher,
        pictures: Pictures,
        settings: DistilSettings,
        folder: Path,
        world: World,
        texts: Texts | None,
    ) -> None:
        shares = settings.accumulate * world.size
        if settings.batch % shares:
            raise UsageError(
                "distil.batch",
                expected=f"a multiple of {shares} (accumulate × processes)",
                got=f"{settings.batch}",
                do="change batch or accumulate",
            )
        if settings.restart > settings.steps:
            raise UsageError(
                "distil.restart",
                expected=f"at most {settings.steps}, the steps",
                got=f"{settings.restart}",
                do="lower it, or set 0 for none",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.student, self.teacher, self.pictures = student.to(world.device), teacher, pictures
        self.settings, self.folder, self.world, self.texts = settings, folder, world, texts
        self.sides = Sides(student.side, teacher.side, settings.teacher_every, settings.early_side, settings.is_early)
        self.size = settings.batch // shares
        self.run_id, self.standing = fingerprint(student, teacher, settings), Standing()

    def run(self, progress: Done | None) -> ImageStudent:
        torch.manual_seed(self.settings.seed)
        stored = read(self.folder / CHECKPOINT, self.run_id)
        self.world.wait()  # nobody writes a checkpoint before all have looked for one
        self._prepare(stored)
        if not self._ended:
            self._learn(progress)
        self.student.load_state_dict(self.best)
        if self.world.is_first:
            write(self.folder / STUDENT, self.run_id, {"student": self.best}, self.standing)
        self.world.wait()
        return self.student.cpu().eval()

    # -- where it starts ---------------------------------------------------------------------------------------

    def _prepare(self, stored: Stored | None) -> None:
        if stored is None:
            cell_map = self._fit()
            head = self.student.projection.detach().clone() if self.settings.teacher_head else None
        else:
            self.aim = Whitening(**{name: part.to(self.world.device) for name, part in stored.groups["aim"].items()})
            head, cell_map = (stored.groups["learner"].get(name) for name in ("head", "cell_map"))
        self.learner = _Learner(self.student, head, cell_map).to(self.world.device)
        # Apart from the learner: every process compares everyone's pictures with them, and so changes them alike.
        some = torch.randn(self.pictures.count, self.student.dim) if self.settings.proxies else torch.zeros(0)
        self.proxies = nn.Parameter(self.world.from_first(some.to(self.world.device)))
        self.optimizer = self._optimizer()
        nothing = torch.zeros(0, self.student.dim), torch.zeros(0, dtype=torch.int64)
        self.recent = _Recent(*(part.to(self.world.device) for part in nothing))
        if stored is not None:
            self._restore(stored)
        else:
            self._look()
            self._save()
        self.log = Log(self.folder / LOG, self.standing.step) if self.world.is_first else None

    def _fit(self) -> Tensor | None:
        settings = self.settings
        inputs = fit_inputs(self.pictures, Sides(self.sides.student, self.sides.teacher), settings)
        seen = look(self.student, self.teacher, inputs, settings.tokens > 0)
        said = None
        if self.texts is not None and seen.captions:
            said = caption_vectors(self.texts, seen.captions, self.student.dim)
        aim = aim_at(torch.cat(seen.embeddings), self.student.dim, settings.whitening, said)
        device = self.world.device
        self.aim = Whitening(*(self.world.from_first(part.to(device)) for part in (aim.centre, aim.projection)))
        start(self.student, self.aim, seen, settings.ridge)
        return token_map(seen, settings.ridge)

    def _optimizer(self) -> torch.optim.Optimizer:
        shared = [part for part in self.learner.parameters() if part.ndim > 1]
        single = [part for part in self.learner.parameters() if part.ndim <= 1]
        groups = [
            {"params": shared, "weight_decay": self.settings.weight_decay},
            {"params": single, "weight_decay": 0.0},
            {"params": [self.proxies], "weight_decay": 0.0, "relative": self.settings.proxies_rate},
        ]
        return torch.optim.AdamW(groups, lr=self.settings.rate)

    # -- learning ----------------------------------------------------------------------------------------------

    @property
    def _ended(self) -> bool:
        return self.standing.step >= self.settings.steps or self.standing.stale >= self.settings.patience

    def _learn(self, progress: Done | None) -> None:
        settings, shared = self.settings, self._shared()
        steps = range(self.standing.step, settings.steps)
        parts = (
            (step, part * self.world.size + self.world.rank) for step in steps for part in range(settings.accumulate)
        )
        inputs = feed(self.pictures, self.sides, parts, self.size, settings.workers)
        for step in steps:
            began = time.perf_counter()
            if settings.restart and step == settings.restart:
                shared = self._shared()
            figures = self._update(shared, inputs, step)
            self.standing.step = step + 1
            looks = self.standing.step % settings.evaluate_every == 0 or self.standing.step == settings.steps
            if looks:
                figures["held_out"] = self._look()
            self.standing.seconds += time.perf_counter() - began
            if self.log is not None:
                self.log.add(step=step + 1, **figures, seconds=self.standing.seconds)
            if looks:
                self._save()
            if progress is not None:
                progress(step + 1, settings.steps)
            if self._ended:
                break

    def _shared(self) -> nn.Module:
        convolutions = [part for part in self.student.backbone.modules() if isinstance(part, nn.Conv2d)]
        for part in convolutions[: self.settings.frozen if self._is_again else 0]:
            part.requires_grad_(False)
        if self.world.size == 1:
            return self.learner
        if self.world.device.type == "cuda":  # BatchNorm over the whole batch; torch has that for GPUs only
            nn.SyncBatchNorm.convert_sync_batchnorm(self.learner)  # type: ignore[no-untyped-call]  # of torch
        return DistributedDataParallel(self.learner)

    def _update(self, shared: nn.Module, inputs: Iterator[Inputs], step: int) -> dict[str, float]:
        """One step of AdamW over ``accumulate`` parts; returns the figures to log."""
        settings = self.settings
        sums = dict[str, float]()
        self.learner.train()
        for part in range(settings.accumulate):
            is_last = part + 1 == settings.accumulate
            with _unsynchronised(shared, is_last):
                losses = self._losses(shared, next(inputs))
                total = torch.stack([getattr(settings, name) * loss for name, loss in losses.items()]).sum()
                torch.autograd.backward(total / settings.accumulate)
            for name, loss in {"loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach()) / settings.accumulate
        if not math.isfinite(sums["loss"]):
            raise DataError(
                f"training step {step + 1}", expected="a finite loss", got=f"{sums['loss']}", do="lower distil.rate"
            )
        nn.utils.clip_grad_norm_(self.learner.parameters(), settings.clip)
        rate = learning_rate(settings, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("relative", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**sums, "rate": rate}

    def _losses(self, shared: nn.Module, inputs: Inputs) -> Losses:
        device, world = self.world.device, self.world
        goal, goal_tokens = self.teacher.embed(inputs.teacher.to(device))
        aim = self.aim(goal)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
            embedding, alike, tokens = shared(inputs.student.to(device))
        everyone, taught = world.gathered(embedding), slice(None, None, self.settings.teacher_every)
        found = {
            "cosine": cosine_loss(alike[taught], aim),
            "relational": world.as_mean(relational_loss(world.gathered(alike[taught]), world.gathered(aim))),
        }
        if self.learner.cell_map is not None:
            found["tokens"] = token_loss(tokens[taught], goal_tokens)
        if self.settings.pairs:
            found["pairs"] = world.as_mean(self._pair_loss(everyone, inputs.things))
        if self.settings.proxies:
            found["proxies"] = world.as_mean(self._proxy_loss(everyone, inputs.things))
        said = self._said(inputs.captions)
        if said is not None:
            loss = caption_loss(everyone, world.gathered(said), self.settings.temperature)
            found["captions"] = world.as_mean(loss)
        return found

    def _pair_loss(self, everyone: Tensor, things: Tensor) -> Tensor:
        """Against this batch and the recent ones, which it then joins."""
        shown = self.world.gathered(things.to(self.world.device))
        recent = self.recent
        loss = pair_loss(everyone, shown, recent.embeddings, recent.things, self.settings.pairs_temperature)
        # While the rate rises, what was embedded a few steps ago lies elsewhere already and would drive all away.
        last = self.settings.cycle(self.settings.steps)
        if self.standing.step >= last.start + self.settings.warm_up * len(last):
            recent.add(everyone, shown, self.settings.recent)
        return loss

    def _proxy_loss(self, everyone: Tensor, things: Tensor) -> Tensor:
        """Against all things; zero before the restart, until which they are put where they are seen."""
        shown = self.world.gathered(things.to(self.world.device))
        if self._is_again:
            return proxy_loss(everyone, shown, self.proxies, self.settings.proxies_temperature)
        known = (shown >= 0) & (shown < len(self.proxies))
        self.proxies.data[shown[known]] = everyone.detach()[known]
        return everyone.sum() * 0

    @property
    def _is_again(self) -> bool:
        """Whether no restart is ahead."""
        return self.standing.step >= self.settings.restart

    def _said(self, captions: Sequence[str] | None) -> Tensor | None:
        if captions is None or self.texts is None or not self.settings.captions:
            return None
        return caption_vectors(self.texts, captions, self.student.dim).to(self.world.device)

    # -- judging and keeping -----------------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> _HeldOut:
        batch, size, found = self.pictures.held_out(), self.settings.batch, []
        for first in range(0, len(batch.pictures), size):
            part = slice(first, first + size)
            captions = None if batch.captions is None else batch.captions[part]
            both = Sides(self.sides.student, self.sides.teacher)
            inputs = both.inputs(Batch(batch.pictures[part], batch.things[part], captions), 0)
            embedding, _ = self.teacher.embed(inputs.teacher.to(self.world.device))
            things = inputs.things.to(self.world.device)
            found.append((inputs.student, things, self.aim(embedding), self._said(captions)))
        return _HeldOut(found)

    @torch.no_grad()
    def _look(self) -> float:
        """The held-out loss of what ships (the cells do not count); keeps the weights if they are the best so far."""
        self.learner.eval()
        settings, total, count = self.settings, 0.0, 0
        for pixels, things, aim, said in self._held_out.batches:
            embedding, alike, _ = self.learner(pixels.to(self.world.device))
            loss = settings.cosine * cosine_loss(alike, aim) + settings.relational * relational_loss(alike, aim)
            if settings.pairs:
                nobody = embedding[:0], things[:0]
                loss = loss + settings.pairs * pair_loss(embedding, things, *nobody, settings.pairs_temperature)
            if said is not None:
                loss = loss + settings.captions * caption_loss(embedding, said, settings.temperature)
            total, count = total + float(loss) * len(pixels), count + len(pixels)
        mean = torch.tensor(total / count, device=self.world.device)
        loss_now = float(self.world.from_first(mean))
        if self.standing.best is None or loss_now < self.standing.best:
            self.standing.best, self.standing.stale, self.best = loss_now, 0, copied(self.student)
        else:
            self.standing.stale += 1
        return loss_now

    def _save(self) -> None:
        if not self.world.is_first:
            return
        rng = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.world.device)
        groups = {
            "learner": self.learner.state_dict(),
            "proxies": {"directions": self.proxies},
            "best": self.best,
            "optimizer": moments(self.optimizer),
            "aim": {"centre": self.aim.centre, "projection": self.aim.projection},
            "recent": {"embeddings": self.recent.embeddings, "things": self.recent.things},
            "rng": rng,
        }
        write(self.folder / CHECKPOINT, self.run_id, groups, self.standing)

    def _restore(self, stored: Stored) -> None:
        self.standing, self.best = stored.standing, dict(stored.groups["best"])
        self.recent = _Recent(**{name: part.to(self.world.device) for name, part in stored.groups["recent"].items()})
        self.learner.load_state_dict(stored.groups["learner"])
        self.proxies.data.copy_(stored.groups["proxies"]["directions"])
        put_back(self.optimizer, stored.groups.get("optimizer", {}))
        torch.set_rng_state(stored.groups["rng"]["cpu"])
        if self.world.device.type == "cuda" and "cuda" in stored.groups["rng"]:
            torch.cuda.set_rng_state(stored.groups["rng"]["cuda"], self.world.device)


def _unsynchronised(shared: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Processes exchange gradients after the last part of a batch only."""
    if isinstance(shared, DistributedDataParallel) and not is_last:
        return shared.no_sync()
    return nullcontext()
