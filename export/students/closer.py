"""What lets a student look closer: where its attention lies, and how large the thing there is.

Fitted on composed scenes, in which that is known; the encoder stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.composites import located
from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.onnx_graph import append, free_sides, pool
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Closer
from edge_ravlm.runtime.closer import ATTENTION, EXTENT

_RIDGE = 0.1
"""Times the features' mean variance."""

_LEAST_MOVE = 0.005
"""Standard deviation of the attention's middle over scenes, as a share of a side; the starter's is above 0.1."""

_OUTPUTS: Mapping[str, str | int] = {ATTENTION: "cells", EXTENT: 1}

Vectors = NDArray[np.float32]


class CloserSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a bundle looks closer.

    Attributes:
        scenes: composed scenes that it is fitted on; 0 leaves it out.
        side, margin, studied: see ``manifest.Closer``.
    """

    scenes: Annotated[int, msgspec.Meta(ge=0)] = 0
    side: Annotated[int, msgspec.Meta(ge=32, le=1024)] = 160
    margin: Annotated[float, msgspec.Meta(ge=1.0, le=8.0)] = 1.5
    studied: tuple[Annotated[float, msgspec.Meta(ge=1.0, le=8.0)], ...] = (2.1,)


@dataclass(frozen=True)
class Fitted:
    """What the fit found.

    Attributes:
        constants: for the manifest.
        query: float32 [channels], the student's.
        weights: float32 [channels], of the pooled features in the extent.
        bias: what is added to that.
    """

    constants: Closer
    query: Vectors
    weights: Vectors
    bias: float


def fit(
    tokens: Callable[[Sequence[Pixels]], Vectors],
    query: Vectors,
    materials: Sequence[Material],
    settings: CloserSettings,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> Fitted:
    """Compose scenes of each material in turn and fit to where their things are.

    Args:
        tokens: the student's cells, float32 [n, cells, channels] of n pictures; their grid is square.
        query: float32 [channels], the student's.
        materials: training parts.
        settings: of the recipe.
        seed: of the scenes.
        advance: called after each scene.

    Raises:
        DataError: the student attends to everything alike, so that there is nothing to look closer at.
    """
    features, middles, true = list[Vectors](), list[Vectors](), list[NDArray[np.float64]]()
    for number in range(settings.scenes):
        rng = np.random.default_rng((seed, number))
        material = materials[number % len(materials)]
        picture, corners = located(material, int(rng.integers(len(material.objects))), rng)
        cells = tokens([picture])[0]
        weights = _softmax(cells @ query)
        pooled = weights @ cells
        features.append(pooled / np.linalg.norm(pooled))
        middles.append(_middle(weights))
        low, high = (np.clip(ends(axis=0) / picture.shape[0], 0, 1) for ends in (corners.min, corners.max))
        true.append(np.array([*(low + high) / 2, (high - low).max()]))
        advance()
    goals, middle = np.stack(true), np.stack(middles)
    if middle.std(0).min() < _LEAST_MOVE:
        raise DataError(
            "closer.scenes",
            expected="a student whose attention follows what it sees",
            got="one that attends to all parts of a picture alike",
            do="train it with distil.pairs, or leave out the closer look",
        )
    x, y = (np.polyfit(middle[:, axis], goals[:, axis], 1) for axis in (0, 1))
    weights, bias = _ridge(np.stack(features), goals[:, 2])
    constants = Closer(
        side=settings.side, margin=settings.margin, studied=settings.studied, x=_rounded(x), y=_rounded(y)
    )
    return Fitted(constants, query, weights, bias)


def with_closer(model: onnx.ModelProto, fitted: Fitted) -> onnx.ModelProto:
    """A copy of an image graph that takes pictures of any size and has the outputs ``attention`` and ``extent`` too.

    Put on after quantization, as ``align.head.with_meaning`` is.
    """
    model = copy.deepcopy(model)
    free_sides(model)
    graph = model.graph
    weights, features = pool(graph, fitted.query)
    nodes = [
        helper.make_node("Flatten", [weights], [ATTENTION]),
        helper.make_node("Gemm", [features, "closer.extent", "closer.bias"], [EXTENT]),
    ]
    constants = {"closer.extent": fitted.weights[:, None], "closer.bias": np.array([fitted.bias], np.float32)}
    append(graph, nodes, constants)
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in _OUTPUTS.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _middle(weights: Vectors) -> Vectors:
    """X and y of the attention's middle, shares of the sides."""
    side = round(len(weights) ** 0.5)
    grid, places = weights.reshape(side, side), (np.arange(side) + 0.5) / side
    return np.array([grid.sum(0) @ places, grid.sum(1) @ places], np.float32)


def _softmax(scores: Vectors) -> Vectors:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), np.float32)


def _ridge(features: Vectors, goals: NDArray[np.float64]) -> tuple[Vectors, float]:
    """Weights and bias of a ridge regression."""
    x = features.astype(np.float64)
    mean, level = x.mean(0), goals.mean()
    centred = x - mean
    penalty = _RIDGE * len(x) * centred.var(0).mean() * np.eye(x.shape[1])
    weights = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (goals - level))
    return weights.astype(np.float32), float(level - mean @ weights)


def _rounded(line: NDArray[np.float64]) -> tuple[float, float]:
    gain, shift = line
    return round(float(gain), 4), round(float(shift), 4)
