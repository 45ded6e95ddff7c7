"""The processes of one training: one alone, or those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from edge_ravlm.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among ``size``.

    Attributes:
        rank: its number, 0 is the one that writes files.
        size: how many there are.
        device: where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def gathered(self, local: Tensor) -> Tensor:
        """Rows of all processes in the order of their ranks, [size * n, …]; only this one's carry a gradient."""
        if self.size == 1:
            return local
        parts = [torch.empty_like(local) for _ in range(self.size)]
        dist.all_gather(parts, local.detach().contiguous())
        parts[self.rank] = local
        return torch.cat(parts)

    def as_mean(self, loss: Tensor) -> Tensor:
        """A loss over gathered rows with its gradient such that the mean over the processes is the whole gradient."""
        return loss if self.size == 1 else loss.detach() + self.size * (loss - loss.detach())

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process's value, so that all decide alike."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world of this process; joins the group that ``torchrun`` describes and leaves it in the end.

    Raises:
        UsageError: there is no such device.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device)
    joins = size > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if joins:
            dist.destroy_process_group()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if name == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device '{name}'",
            expected="cpu, or cuda where torch finds a GPU",
            got=str(error).splitlines()[0],
            do="set distil.device to cpu",
        ) from None
    return device
