"""Looking at several pictures in one run: the same answers, fewer runs, no deadline lost by it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ravlm.errors import EngineError
from edge_ravlm.frames import Frame, Region
from edge_ravlm.runtime import looking
from edge_ravlm.runtime.answer import Level
from edge_ravlm.runtime.deadline import Deadline, Paces
from edge_ravlm.runtime.encoders import ImageEncoder
from edge_ravlm.runtime.looking import TOGETHER, Looking, View
from edge_ravlm.runtime.pipeline import Asked, Ravlm

QUESTION = "is the gate open?"
LONG_S = 600.0


class Counting:
    """The model's session, which says how many pictures each run had, and refuses more than ``most``."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.pictures: list[int] = []
        self.most = 64
        self._encoder, self.real = encoder, encoder._session
        encoder._session = self

    @property
    def name(self) -> str:
        return self.real.name

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        self.pictures.append(len(feeds["image"]))
        if len(feeds["image"]) > self.most:
            raise EngineError("engine", expected="one picture", got="more", do="look at one after the other")
        return self.real.run(feeds, outputs)

    def close(self) -> None:
        self.real.close()

    def restore(self) -> None:
        self._encoder._session = self.real


@pytest.fixture
def counting(ravlm: Ravlm) -> Iterator[Counting]:
    ravlm.settle()  # the decoder, which comes later, tries the encoder out
    counted = Counting(ravlm._image)
    yield counted
    counted.restore()


@pytest.fixture
def eager(ravlm: Ravlm, monkeypatch: pytest.MonkeyPatch) -> Ravlm:
    """It looks at several pictures at once, whatever that brings on this machine today."""
    monkeypatch.setattr(looking, "_WORTH", 1e9)
    assert set(ravlm.learn_together()) == set(TOGETHER)
    return ravlm


def teach(ravlm: Ravlm, yard: Any) -> None:
    ravlm.remember(yard.closed, "the gate is closed", region=yard.gate)
    ravlm.remember(yard.open, "the gate is open", region=yard.gate)


def shown(yard: Any) -> list[Frame]:
    """A frame of each of two cameras."""
    return [Frame(yard.closed_later, index=0, source="one"), Frame(yard.open_later, index=0, source="two")]


def test_pictures_looked_at_together_are_seen_as_when_looked_at_alone(ravlm: Ravlm, yard: Any) -> None:
    pixels = np.concatenate([ravlm._image.preprocess(Frame(one)) for one in (yard.closed, yard.open, yard.open_later)])
    for row, found in enumerate(ravlm._image.looks(pixels)):
        alone = ravlm._image.look(pixels[row : row + 1])
        assert float(found.embedding @ alone.embedding) == pytest.approx(1, abs=1e-4)
        assert found.cells.shape == alone.cells.shape
        assert np.allclose(found.cells, alone.cells, atol=1e-2)
        assert found.focus is not None
        assert alone.focus is not None
        assert found.focus.x == pytest.approx(alone.focus.x, abs=1e-3)


def test_two_cameras_are_answered_from_one_run(eager: Ravlm, yard: Any, counting: Counting) -> None:
    teach(eager, yard)
    frames = shown(yard)
    counting.pictures.clear()
    assert eager.look_ahead([Asked(frame, QUESTION, yard.gate) for frame in frames]) == 2
    answers = [eager.ask(frame, QUESTION, region=yard.gate) for frame in frames]
    assert [answer.text for answer in answers] == ["the gate is closed", "the gate is open"]
    assert counting.pictures == [2]
    assert all(answer.latency.stages_ms["encode"] > 0 for answer in answers), "each bears its share"
    again = eager.ask(frames[0], "is the gate closed?", region=yard.gate)
    assert "encode" not in again.latency.stages_ms, "a share is paid once"
    assert counting.pictures == [2]


def test_regions_of_one_frame_are_looked_at_together_and_the_same_one_once(
    eager: Ravlm, yard: Any, counting: Counting
) -> None:
    frame, other = Frame(yard.closed), Region.box(0, 0, 100, 100)
    counting.pictures.clear()
    asked = [Asked(frame, question, region) for region in (yard.gate, other) for question in (QUESTION, "what is it?")]
    assert eager.look_ahead(asked) == 4
    assert counting.pictures == [2]


def test_what_does_not_fit_in_one_run_takes_two(eager: Ravlm, yard: Any, counting: Counting) -> None:
    frame = Frame(yard.closed)
    counting.pictures.clear()
    regions = [Region.box(10 * n, 0, 10 * n + 50, 50) for n in range(7)]
    assert eager.look_ahead([Asked(frame, QUESTION, region) for region in regions]) == 7
    assert counting.pictures == [4, 3]


def test_what_stands_still_needs_no_look(eager: Ravlm, yard: Any, counting: Counting) -> None:
    teach(eager, yard)
    for frame in shown(yard):
        eager.ask(frame, QUESTION, region=yard.gate)
    counting.pictures.clear()
    next_ones = [Frame(frame.pixels, index=1, source=frame.source) for frame in shown(yard)]
    assert eager.look_ahead([Asked(frame, QUESTION, yard.gate) for frame in next_ones]) == 2
    answers = [eager.ask(frame, QUESTION, region=yard.gate) for frame in next_ones]
    assert [answer.level for answer in answers] == [Level.CACHED, Level.CACHED]
    assert counting.pictures == []


def test_a_deadline_is_not_lost_for_the_sake_of_a_shared_run(eager: Ravlm, yard: Any, counting: Counting) -> None:
    late, early = shown(yard)
    counting.pictures.clear()
    asked = [Asked(late, QUESTION, yard.gate), Asked(early, QUESTION, yard.gate, budget_ms=0.001)]
    assert eager.look_ahead(asked) == 0
    assert counting.pictures == []


def test_nothing_is_shared_before_it_is_known_to_pay(ravlm: Ravlm, yard: Any, counting: Counting) -> None:
    alone = Looking(ravlm._image, Paces())
    views = [View(frame, yard.gate, time.monotonic() + LONG_S) for frame in shown(yard)]
    counting.pictures.clear()
    assert alone.together(views) == 0
    deadline = Deadline(LONG_S * 1e3, time.monotonic())
    alone.look(views[0].frame, yard.gate, deadline)
    assert alone.together(views) == 1, "the first one is known by now"
    assert counting.pictures == [1]


def test_an_engine_for_one_picture_is_left_to_it(
    ravlm: Ravlm, yard: Any, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_WORTH", 1e9)
    counting.most = 1
    alone = Looking(ravlm._image, Paces())
    assert alone.learn_together() == {}
    assert alone.together([View(frame, yard.gate, time.monotonic() + LONG_S) for frame in shown(yard)]) == 0


@pytest.mark.parametrize(("count", "shape"), [(3, (4000, 6000, 3)), (5, (120, 160, 3))])
def test_frames_that_would_not_all_be_kept_are_not_looked_at_together(
    eager: Ravlm, counting: Counting, count: int, shape: tuple[int, int, int]
) -> None:
    """Each would push out what was just seen of another, until the deadline."""
    frames = [Frame(np.zeros(shape, np.uint8), index=0, source=f"camera {n}") for n in range(count)]
    counting.pictures.clear()
    assert eager.look_ahead([Asked(frame, QUESTION, budget_ms=60_000) for frame in frames]) == 0
    assert counting.pictures == []


def test_a_full_look_does_not_wait_for_the_glimpses_of_others(ravlm: Ravlm, yard: Any, counting: Counting) -> None:
    both = Looking(ravlm._image, Paces(), glimpse=True)
    both._numbers = (2,)
    by = time.monotonic() + LONG_S
    first, *others = (Frame(yard.closed, index=0, source=f"camera {n}") for n in range(3))
    counting.pictures.clear()
    assert both.together([View(first, None, by), *(View(frame, None, by, glimpse=True) for frame in others)]) == 0
    assert counting.pictures == []
    assert both.together([View(frame, None, by, glimpse=True) for frame in others]) == 2


def test_a_question_that_cannot_be_asked_is_left_to_ask(eager: Ravlm, yard: Any, counting: Counting) -> None:
    one, two = shown(yard)
    asked = [Asked(one, QUESTION, Region.box(0, 0, 9999, 9999)), Asked(one, QUESTION), Asked(two, QUESTION)]
    counting.pictures.clear()
    assert eager.look_ahead(asked) == 3
    assert counting.pictures == [2]


def test_frames_of_many_cameras_are_not_kept(ravlm: Ravlm, yard: Any) -> None:
    for number in range(20):
        ravlm.ask(Frame(yard.closed, index=0, source=f"camera {number}"), QUESTION)
    assert len(ravlm._looking._kept) == TOGETHER[0]
