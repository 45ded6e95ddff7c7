"""Small made-up things, eyes that tell them apart, and readers whose answers are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from edge_ravlm.export.data.composites import WEAR, Wear
from edge_ravlm.export.data.datasets import Part
from edge_ravlm.export.data.questions import Asked, Hops
from edge_ravlm.export.data.signs import Sign, named
from edge_ravlm.export.evaluation import show_once
from edge_ravlm.export.evaluation.show_once import Showing
from edge_ravlm.export.evaluation.subject import Episode, Reader, Reply, Subject
from edge_ravlm.frames import Pixels
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.encoders import Look
from edge_ravlm.runtime.memory import Space

DIM = 64


class Flat(Part[Sign]):
    """A thing's scene is its own tone all over."""

    def scene(self, index: int, rng: np.random.Generator, wear: Wear = WEAR) -> Pixels:
        return np.full((8, 8, 3), self.things[index].pixels[0, 0, 0], np.uint8)


class Eyes:
    """Every tone looks in a direction of its own, or all in the same one."""

    preprocess = Preprocess(height=8, width=8)

    def __init__(self, sharp: bool = True) -> None:
        self.sharp = sharp

    def look(self, pixels: Pixels) -> Look:
        embedding = np.zeros(DIM, np.float32)
        embedding[pixels[0, 0, 0, 0] if self.sharp else 0] = 1
        return Look(embedding, np.full((1, 2, 3), pixels[0, 0, 0, 0], np.float32), embedding)


class Letters:
    """How often each letter stands in a sentence."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([np.bincount([ord(letter) % DIM for letter in text], minlength=DIM) for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)

    def embed_question(self, question: str) -> np.ndarray:
        return self.embed([question])[0]


@dataclass
class Fake:
    """A reader that answers by a rule: a text, or None for an abstention."""

    rule: Callable[[Episode], str | None]
    confidence: float = 1.0
    entries: int = 3
    abstain_above: float = 0.5

    def answer(self, episode: Episode) -> Reply:
        text = self.rule(episode)
        copied = np.zeros(len(episode.passages), np.float32)
        return Reply("", 1.0, 0.0, copied) if text is None else Reply(text, 0.0, self.confidence, copied)

    def milliseconds(self, episodes: Sequence[Episode]) -> float:
        return float(len(episodes))


def copied(episode: Episode) -> str | None:
    """Passage 1 as it is."""
    return episode.passages[0].text if episode.passages else "nothing"


def read(episode: Episode) -> str | None:
    """What passage 1 says of the asked kind if its picture is the one that is asked about; a code is followed up."""
    if not episode.passages or (episode.passages[0].image_cosine or 0) < 0.99:
        return None
    said = _value(episode.question, episode.passages[0].text)
    code = _value("code", episode.passages[0].text)
    if said is None and code is not None:
        texts = [passage.text for passage in episode.passages if f"{code} explained" in passage.text]
        said = _value(episode.question, texts[0]) if texts else None
    return said


def _value(kind: str, text: str) -> str | None:
    found = re.search(rf"\b{kind}=([^.,;]*)", text, re.IGNORECASE)
    return None if found is None else found[1]


def plain(thing: Sign, rng: np.random.Generator, half: str) -> list[Asked]:
    """Facts that ``read`` can read."""
    answers = {"meaning": thing.meaning, "category": thing.category, "caption": f"one two three {thing.meaning}"}
    answers["owner"] = f"owner of {thing.design}"
    return [Asked(kind, answer, f"{kind}={answer}", kind) for kind, answer in answers.items()]


def plain_hops(answer: str, rng: np.random.Generator, half: str) -> Hops:
    code = f"K{rng.integers(10**6)}"
    return Hops("meaning", answer, f"code={code}", f"{code} explained; meaning={answer}", code, "code")


@contextmanager
def silent(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    yield lambda **_: None


@pytest.fixture
def worded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries say their facts in a wording that ``read`` understands."""
    monkeypatch.setattr(show_once, "asked", plain)
    monkeypatch.setattr(show_once, "hops", plain_hops)


def subject(reader: Reader | None = None, *, sharp: bool = True, has_meaning: bool = False) -> Subject:
    return Subject("fake", Eyes(sharp), Letters(), reader, Space("i", DIM), Space("t", DIM), has_meaning)


def sign(number: int, meaning: str, design: str) -> Sign:
    return named(f"warning--{meaning}--{design}", np.full((2, 2, 4), number, np.uint8))


MEANINGS = ("ice", "snow", "rain", "fog", "wind")
THINGS = tuple(
    sign(2 * number + twin, meaning, f"g{twin}") for number, meaning in enumerate(MEANINGS) for twin in (0, 1)
)
"""Ten signs, two designs of each meaning."""


def part(*rows: int) -> Flat:
    return Flat(tuple(THINGS[row] for row in rows), ())


SHOWING = Showing(part(*range(10)), part(0, 5), {"seen": part(3, 4)})
"""Ten signs in the memory; asked about are those of the rows 0 and 5."""
