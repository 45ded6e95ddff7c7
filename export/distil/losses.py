"""What the student is punished for; every loss is a mean over pictures and zero where the student is perfect."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edge_ravlm.errors import DataError


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine between rows, float32 [n, dim] each."""
    return (1 - functional.cosine_similarity(student, teacher, dim=1)).mean()


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the batch's similarity matrices, per picture (Tung & Mori 2019, arXiv:1907.09682).

    Args:
        student: float32 [n, dim] of unit length.
        teacher: the same.
    """
    difference = student @ student.T - teacher @ teacher.T
    return difference.square().sum() / len(student)


def token_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine over the cells of the student's grid; the teacher's grid is resized to it.

    Args:
        student: float32 [n, cells, c], the cells of a square grid row by row.
        teacher: the same, perhaps of another square grid.
    """
    return (1 - functional.cosine_similarity(student, resized(teacher, student.shape[1]), dim=2)).mean()


def caption_loss(student: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways between pictures and their captions (Radford et al. 2021, arXiv:2103.00020).

    Args:
        student: float32 [n, dim] of unit length.
        texts: the same of the captions. Equal captions are each other's right answer too.
        temperature: of the softmax.
    """
    scores = student @ texts.T / temperature
    same = (texts @ texts.T > 1 - 1e-4).float()
    goal = same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(scores, goal) + functional.cross_entropy(scores.T, goal)) / 2


def pair_loss(student: Tensor, things: Tensor, others: Tensor, other_things: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, eq. 2): one thing's pictures lie together.

    Args:
        student: float32 [n, dim] of unit length.
        things: int64 [n], equal for pictures of the same thing; a negative one is nothing and has no company.
        others: earlier embeddings without gradient, float32 [m, dim] (cross-batch memory, Wang et al. 2020,
            arXiv:1912.06798).
        other_things: int64 [m].
        temperature: of the softmax.

    Returns:
        The mean over the pictures that have company; zero where none has.
    """
    scores = student @ torch.cat([student, others]).T / temperature
    itself = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    together = (things[:, None] == torch.cat([things, other_things])[None]) & (things[:, None] >= 0) & ~itself
    shares = functional.log_softmax(scores.masked_fill(itself, -torch.inf), dim=1)
    each = -shares.masked_fill(~together, 0).sum(1) / together.sum(1).clamp(min=1)
    return each.sum() / together.any(1).sum().clamp(min=1)


def proxy_loss(student: Tensor, things: Tensor, proxies: Tensor, temperature: float) -> Tensor:
    """Normalised softmax over one direction per thing (Zhai & Wu 2019, arXiv:1811.12649, eq. 4).

    Args:
        student: float32 [n, dim] of unit length.
        things: int64 [n]; those without a direction have no part in it.
        proxies: float32 [m, dim] of any length.
        temperature: of the softmax.

    Returns:
        The mean over the pictures with a direction; zero where there is none.
    """
    known = (things >= 0) & (things < len(proxies))
    scores = student[known] @ functional.normalize(proxies, dim=1).T / temperature
    return functional.cross_entropy(scores, things[known], reduction="sum") / known.sum().clamp(min=1)


def resized(tokens: Tensor, cells: int) -> Tensor:
    """Tokens of a square grid, float32 [n, t, c], as those of another square grid of ``cells`` cells.

    Raises:
        DataError: a grid is not square.
    """
    if tokens.shape[1] == cells:
        return tokens
    old, new = math.isqrt(tokens.shape[1]), math.isqrt(cells)
    if (old**2, new**2) != (tokens.shape[1], cells):
        raise DataError(
            "token grids",
            expected="square ones",
            got=f"{tokens.shape[1]} teacher tokens and {cells} student tokens",
            do="set distil.tokens = 0 to learn from the embedding alone",
        )
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, old, old)
    smooth = functional.interpolate(grid, (new, new), mode="bilinear", antialias=new < old, align_corners=False)
    return smooth.flatten(2).transpose(1, 2)


def ridge(inputs: Tensor, targets: Tensor, damping: float) -> Tensor:
    """The linear map W of least squares, inputs @ W near targets, damped.

    Args:
        inputs: float [n, a].
        targets: float [n, b].
        damping: added to the diagonal, as a share of its mean.

    Returns:
        Float32 [a, b].
    """
    exact = inputs.double()
    gram = exact.T @ exact
    gram += (
        damping * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    solution: Tensor = torch.linalg.solve(gram, exact.T @ targets.double())
    return solution.float()
