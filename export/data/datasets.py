"""The data sets that trainers learn from and evaluations judge on: ``traffic``, ``home`` and ``easy_vqa``.

Scenes are composed when they are asked for, nothing of them is on disk. What each data set is made of, and what is held
out of it, is in ``manifests/`` and can be checked (``edge_ravlm.export.data.manifest``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from edge_ravlm.export.data import easy_vqa as official
from edge_ravlm.export.data import furniture, signs
from edge_ravlm.export.data.backgrounds import Half, photographs, rooms
from edge_ravlm.export.data.composites import WEAR, Wear, composite
from edge_ravlm.export.data.easy_vqa import Question
from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.data.signs import Sign
from edge_ravlm.frames import Pixels


class Thing(Protocol):
    """What scenes are composed of; ``Sign`` and ``Piece`` are such.

    Attributes:
        name: unique in its data set.
        pixels: uint8 [h, w, 4] BGRA.
        sentence: what it is; things that mean the same share it.
        facts: further sentences that are true of it.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def pixels(self) -> Pixels: ...  # noqa: D102
    @property
    def sentence(self) -> str: ...  # noqa: D102
    @property
    def facts(self) -> tuple[str, ...]: ...  # noqa: D102


ThingT = TypeVar("ThingT", bound=Thing)


@dataclass(frozen=True)
class Part(Generic[ThingT]):
    """Things and what they stand on.

    Attributes:
        things: in a fixed order.
        backgrounds: uint8 [h, w, 3] BGR each.
    """

    things: tuple[ThingT, ...]
    backgrounds: tuple[Pixels, ...]

    @property
    def material(self) -> Material:
        """The same without texts, as trainers of pictures take it."""
        return Material([thing.pixels for thing in self.things], self.backgrounds)

    def scene(self, index: int, rng: np.random.Generator, wear: Wear = WEAR) -> Pixels:
        """Thing ``index`` once in a hard composed scene, uint8 [SIDE, SIDE, 3] BGR."""
        return composite(Material([self.things[index].pixels], self.backgrounds), 0, rng, wear)


@dataclass(frozen=True)
class Traffic:
    """Traffic signs on photographs.

    Attributes:
        train: to learn from.
        held_out: all signs of 150 meanings that nothing learns, neither picture nor words.
        designs: of each other meaning with several designs one that nothing learns; ``train`` has the others.
    """

    train: Part[Sign]
    held_out: Part[Sign]
    designs: Part[Sign]


@dataclass(frozen=True)
class Home:
    """Objects of a home in rooms and on photographs; no name of a held-out object is in ``train``, numbers aside."""

    train: Part[Piece]
    held_out: Part[Piece]


@dataclass(frozen=True)
class EasyVqa:
    """Questions about one shape; ``held_out`` is the official test part, which nothing learns.

    Attributes:
        answers: all that there are.
    """

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]
    answers: tuple[str, ...]


def traffic() -> Traffic:
    """The signs; fetches and renders what is not in the cache.

    Raises:
        DataError: a package cannot be had, or is not what it was.
        MissingExtra: the export extra is not installed.
    """
    known = {sign.name: sign for sign in signs.signs()}
    parts = signs.split(known)
    seen, unseen = tuple(photographs("train")), tuple(photographs("held_out"))
    return Traffic(
        Part(_chosen(known, parts.train), seen),
        Part(_chosen(known, parts.meanings), unseen),
        Part(_chosen(known, parts.designs), unseen),
    )


def home() -> Home:
    """The objects; fetches what is not in the cache.

    Raises:
        DataError: a package cannot be had, or is not what it was.
    """
    train, held_out = furniture.split(furniture.furniture())
    return Home(Part(tuple(train), _indoors("train")), Part(tuple(held_out), _indoors("held_out")))


def easy_vqa() -> EasyVqa:
    """The questions; fetches the package if it is not in the cache.

    Raises:
        DataError: the package cannot be had, or is not what it was.
    """
    return EasyVqa(official.questions("train"), official.questions("test"), official.answers())


def _chosen(known: dict[str, Sign], names: Sequence[str]) -> tuple[Sign, ...]:
    return tuple(known[name] for name in names)


def _indoors(half: Half) -> tuple[Pixels, ...]:
    return (*rooms(half), *photographs(half))
