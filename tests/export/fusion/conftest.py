"""A small bank of made-up signs, without any encoder: each thing's scenes lie around a direction of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge_ravlm.export.data.signs import named
from edge_ravlm.export.fusion.bank import Bank
from edge_ravlm.export.fusion.episodes import Episodes, Shelf, Told
from edge_ravlm.export.fusion.tokenizer import fit_tokenizer

DIM, CELLS, CHANNELS = 16, 4, 6
MEANINGS = ("falling-rocks", "no-stopping", "go-right", "cattle", "steep-hill", "school", "tunnel", "low-bridge")


def texts(said: Sequence[str]) -> NDArray[np.float32]:
    """Stands in for the text encoder: equal texts are equal, others are not."""
    rows = [np.random.default_rng(list(text.encode()) or [0]).standard_normal(8) for text in said]
    return np.asarray([row / np.linalg.norm(row) for row in rows], np.float32)


@pytest.fixture(scope="session")
def bank() -> Bank:
    rng = np.random.default_rng(0)
    things = [named(f"warning--{meaning}--g1") for meaning in MEANINGS]
    scenes = rng.standard_normal((len(things), 1, DIM)) + 0.2 * rng.standard_normal((len(things), 3, DIM))
    scenes /= np.linalg.norm(scenes, axis=2, keepdims=True)
    cells = rng.standard_normal((len(things), 3, CELLS, CHANNELS))
    looks = scenes.astype(np.float16)
    return Bank(things, looks, looks, cells.astype(np.float16))


@pytest.fixture(scope="session")
def shelf(bank: Bank) -> Shelf:
    """All of it is asked about and remembered."""
    rows = np.arange(len(bank.things))
    return Shelf(bank, 1.0, rows, rows)


@pytest.fixture(scope="session")
def told() -> Told:
    """Two pictures, of which the first is red and the second blue."""
    cells = np.stack([np.full((CELLS, CHANNELS), 1), np.full((CELLS, CHANNELS), -1)]).astype(np.float16)
    cells[:, :, ::2] *= -1  # a row of equal numbers has no direction
    asked = [("what color is this?", "red", 0), ("what color is this?", "blue", 1)]
    return Told(asked, cells, np.eye(2, DIM, dtype=np.float16))


@pytest.fixture(scope="session")
def episodes(shelf: Shelf, told: Told) -> Episodes:
    return Episodes([shelf], texts, told)


@pytest.fixture(scope="session")
def tokenizer(episodes: Episodes) -> Tokenizer:
    said = []
    for number in range(300):
        drawn = episodes.draw(np.random.default_rng(number))
        said += [drawn.question, drawn.answer or "", *(passage.text for passage in drawn.passages)]
    return fit_tokenizer(said, 700)
