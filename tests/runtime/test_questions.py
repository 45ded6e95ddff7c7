"""Which memories a question is about: a real memory, with vectors made by hand so that it is plain who is like whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ravlm.errors import UsageError
from edge_ravlm.frames import Frame, Region
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, Where
from edge_ravlm.runtime.questions import REGION_TAG, Standing, Topic, find_topic, scope_of, with_neighbours

DIM = 8
GATE, LAMP, CAT, BINS, PATH, CLOSED = np.eye(DIM, dtype=np.float32)[:6]
"""Directions of the text space: what a sentence is about."""

Vector = NDArray[np.float32]
Tell = Callable[..., int]


def mix(*parts: Vector) -> Vector:
    total = np.sum(parts, axis=0)
    return np.asarray(total / np.linalg.norm(total), np.float32)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    spaces = {"image": Space("ab" * 32, DIM), "text": Space("cd" * 32, DIM)}
    with Memory.open(tmp_path / "home.memory", spaces, auto_compact=False) as opened:
        yield opened


@pytest.fixture
def tell(memory: Memory) -> Tell:
    """tell(text, text vector, picture vector or None, **NewEntry's other fields): the entry's id."""

    def add(text: str, says: Vector, shows: Vector | None = LAMP, **more: object) -> int:
        vectors = {"text": says} if shows is None else {"text": says, "image": shows}
        return memory.add([NewEntry(text, vectors=vectors, **more)])[0]  # type: ignore[arg-type]

    return add


def topic_of(
    memory: Memory, question: Vector, rules: Answering, *, openness: float = -1.0, said: str = "", **where: object
) -> Topic:
    return find_topic(memory, said, question, openness, Where(**where), rules)  # type: ignore[arg-type]


def voters(topic: Topic) -> list[int]:
    return [] if topic.ballot is None else sorted(topic.ballot.ids.tolist())


def test_the_nearest_text_names_the_topic_and_brings_its_other_states(
    memory: Memory, tell: Tell, rules: Answering
) -> None:
    opened = tell("the gate is open", GATE)
    closed = tell("the gate is closed", mix(GATE, 0.8 * CLOSED))
    tell("a cat sits on the wall", CAT)
    topic = topic_of(memory, mix(GATE, -0.4 * CLOSED), rules)
    assert list(topic.entries) == [opened, closed], "most related first"
    assert voters(topic) == [opened, closed]
    assert topic.ballot is not None
    assert topic.ballot.answers == 2
    assert not topic.silence
    assert not topic.crowded
    assert topic.score == pytest.approx(float(GATE @ mix(GATE, -0.4 * CLOSED)), abs=1e-3)


def test_a_state_that_the_question_does_not_resemble_is_found_through_its_sibling(
    memory: Memory, tell: Tell, rules: Answering
) -> None:
    question = mix(GATE, -1.2 * CLOSED)
    opened, closed = tell("open", GATE), tell("closed", mix(GATE, 1.5 * CLOSED))
    assert float(question @ mix(GATE, 1.5 * CLOSED)) < rules.text_floor
    assert voters(topic_of(memory, question, rules)) == [opened, closed]


def test_an_unrelated_question_is_told_so(memory: Memory, tell: Tell, rules: Answering) -> None:
    tell("the gate is open", GATE)
    topic = topic_of(memory, mix(CAT, 0.2 * GATE), rules)
    assert topic.silence == "no memory talks about this"
    assert topic.ballot is None
    assert not topic.entries


def test_a_question_about_the_picture_itself_asks_its_neighbours(memory: Memory, tell: Tell, rules: Answering) -> None:
    gate, cat = tell("the gate is open", GATE, GATE), tell("a cat", CAT, CAT)
    tell("bins go out on Monday", BINS, None)
    topic = topic_of(memory, PATH, rules, openness=0.9)
    assert topic.crowded
    assert topic.name is None
    assert not topic.entries
    found = with_neighbours(memory, topic, mix(CAT, 0.1 * GATE), rules)
    assert voters(found) == sorted([gate, cat])
    assert not topic.entries, "the topic itself stays as it was"
    # A memory that the question names more clearly than any open question does is asked about instead.
    assert voters(topic_of(memory, GATE, rules, openness=0.9)) == [gate]


def test_an_empty_memory_an_empty_region_and_an_empty_filter_are_told_apart(
    memory: Memory, tell: Tell, rules: Answering
) -> None:
    assert topic_of(memory, GATE, rules).silence == "nothing was taught yet"
    tell("the gate is open", GATE)
    assert topic_of(memory, GATE, rules, tags={"camera": "yard"}).silence == "no memory matches the filter"
    in_door = {REGION_TAG: "door"}
    assert topic_of(memory, GATE, rules, tags=in_door).silence == "nothing was taught in region 'door'"
    for name in ("gate", "gate", "yard", "a", "b", "c", "d"):
        tell("the gate is open", GATE, tags={REGION_TAG: name})
    silence = topic_of(memory, GATE, rules, tags=in_door).silence
    assert silence == "nothing was taught in region 'door'; regions taught: 'a', 'b', 'c', 'd', 'gate', …"
    both = {REGION_TAG: "gate", "camera": "yard"}
    assert topic_of(memory, GATE, rules, tags=both).silence == "no memory matches the filter"


def test_filters_hold_for_siblings_and_neighbours_too(memory: Memory, tell: Tell, rules: Answering) -> None:
    here = tell("the gate is open", GATE, tags={"camera": "a"})
    tell("the gate is closed", GATE, tags={"camera": "b"})
    topic = topic_of(memory, GATE, rules, tags={"camera": "a"})
    assert list(topic.entries) == [here]
    assert voters(with_neighbours(memory, topic, LAMP, rules)) == [here]


def test_facts_without_a_picture_are_on_the_topic_but_have_no_vote(
    memory: Memory, tell: Tell, rules: Answering
) -> None:
    fact = tell("bins go out on Monday", BINS, None)
    topic = topic_of(memory, BINS, rules)
    assert list(topic.entries) == [fact]
    assert topic.ballot is None
    pictured = tell("the bins are out", mix(BINS, 0.5 * PATH))
    topic = topic_of(memory, BINS, rules)
    assert list(topic.entries) == [fact, pictured]
    assert voters(topic) == [pictured]


def test_in_a_named_region_the_only_other_answer_need_not_sound_alike(
    memory: Memory, tell: Tell, rules: Answering
) -> None:
    tags = {REGION_TAG: "path"}
    somebody, empty = tell("somebody is here", GATE, tags=tags), tell("the path is empty", PATH, tags=tags)
    lamp_on, lamp_off = tell("the lamp is on", LAMP, tags=tags), tell("the lamp is off", LAMP, tags=tags)
    asked = topic_of(memory, GATE, rules, tags=tags)
    assert voters(asked) == [somebody, empty], "the lamp's states belong to each other"
    assert voters(topic_of(memory, GATE, rules)) == [somebody], "without a region it may be about anything"
    assert voters(topic_of(memory, LAMP, rules, tags=tags)) == [lamp_on, lamp_off]


@pytest.mark.parametrize(
    ("texts", "answers"),
    [
        (("the gate is open", "The gate  is open.", "THE GATE IS OPEN!"), 1),
        (("the gate is open", "the gate is closed"), 2),
        (("...", "!", "?"), 3),
    ],
)
def test_case_spacing_and_a_full_stop_make_no_other_answer(
    memory: Memory, tell: Tell, rules: Answering, texts: Sequence[str], answers: int
) -> None:
    for text in texts:
        tell(text, GATE)
    topic = topic_of(memory, GATE, rules)
    assert topic.ballot is not None
    assert topic.ballot.answers == answers
    assert [entry.text for entry in topic.entries.values()] == list(texts), "each keeps its own words"


def test_entries_that_give_the_same_short_answer_vote_together(memory: Memory, tell: Tell, rules: Answering) -> None:
    tell("the gate stands wide open", GATE, answer="open")
    tell("somebody left the gate open", GATE, answer="open")
    topic = topic_of(memory, GATE, rules)
    assert topic.ballot is not None
    assert topic.ballot.answers == 1


def test_a_crowd_is_joined_by_the_pictures_own_neighbours_on_the_topic(
    memory: Memory, tell: Tell, rules: Answering
) -> None:
    """More memories than one retrieval brings: those that look like the picture must be among the voters."""
    rng = np.random.default_rng(0)
    crowd = mix(LAMP, 0.1 * rng.standard_normal(DIM).astype(np.float32))
    memory.add([NewEntry("the gate is closed", vectors={"text": GATE, "image": crowd}) for _ in range(300)])
    opened = tell("the gate is open", mix(GATE, 0.2 * CLOSED), CAT)
    cat = tell("a cat sits on the wall", CAT, CAT)
    topic = topic_of(memory, GATE, rules)
    assert topic.crowded
    assert opened not in topic.entries
    joined = with_neighbours(memory, topic, mix(CAT, 0.1 * LAMP), rules)
    assert opened in voters(joined)
    assert cat not in joined.entries, "it looks alike, but it is about something else"
    assert len(voters(joined)) == len(set(voters(joined))) > len(voters(topic))
    assert joined.ballot is not None
    assert joined.ballot.answers == 2
    assert voters(with_neighbours(memory, joined, mix(CAT, 0.1 * LAMP), rules)) == voters(joined)


def test_a_topic_keeps_no_thumbnails(memory: Memory, tell: Tell, rules: Answering) -> None:
    id_ = tell("the gate is open", GATE, thumbnail=b"\xff\xd8" * 5000)
    topic = topic_of(memory, GATE, rules)
    assert topic.entries[id_].thumbnail is None
    assert memory.get([id_])[0].thumbnail is not None


def test_a_region_with_a_name_narrows_the_scope() -> None:
    gate = Region.box(0, 0, 5, 5, name="gate")
    assert scope_of(None, gate) == Where(tags={REGION_TAG: "gate"})
    assert scope_of(Where(tags={"camera": "a"}, after=3.0), gate) == Where(
        tags={"camera": "a", REGION_TAG: "gate"}, after=3.0
    )
    for region in (None, Region.box(0, 0, 5, 5)):
        assert scope_of(None, region) == Where()
    with pytest.raises(UsageError, match="UTF-8"):
        scope_of(None, Region.box(0, 0, 5, 5, name="\udcff"))


def test_a_standing_question_forgets_when_the_memory_changed() -> None:
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    answer = Answer("open", 0.9, Level.RETRIEVED, (), Latency({}, 1.0, 2.0), 0.0)
    standing = Standing("is it open?", None, Where())
    standing.refresh(3)
    standing.topic = Topic(scope=Where())
    standing.settle(Frame(pixels[0]), pixels, answer)
    standing.refresh(3)
    assert standing.answer is answer
    standing.refresh(4)
    assert (standing.version, standing.topic, standing.pixels, standing.answer) == (4, None, None, None)


def test_an_answer_is_held_for_the_same_camera_and_never_twice_in_a_row() -> None:
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    answer = Answer("open", 0.9, Level.RETRIEVED, (), Latency({}, 1.0, 2.0), 0.0)
    standing = Standing("is it open?", None, Where())
    standing.settle(Frame(pixels[0], index=7, source="yard"), pixels, answer)
    assert standing.may_hold(Frame(pixels[0], index=8, source="yard"))
    assert not standing.may_hold(Frame(pixels[0], index=8, source="street"))
    assert not standing.may_hold(Frame(pixels[0], source="yard")), "a picture that is no frame of a camera"
    standing.holding = True
    assert not standing.may_hold(Frame(pixels[0], index=9, source="yard"))
    standing.settle(Frame(pixels[0], index=9, source="yard"), pixels, answer)
    assert standing.may_hold(Frame(pixels[0], index=10, source="yard"))


def test_topics_are_found_while_another_thread_teaches(memory: Memory, tell: Tell, rules: Answering) -> None:
    tell("the gate is open", GATE)
    stop, taught = threading.Event(), [0]

    def teach() -> None:
        while not stop.is_set() and taught[0] < 500:
            tell("the gate is closed", mix(GATE, 0.5 * CLOSED))
            taught[0] += 1

    teacher = threading.Thread(target=teach)
    teacher.start()
    try:
        counts = []
        give_up = time.monotonic() + 30
        while taught[0] < 50 and time.monotonic() < give_up:
            counts.append(len(topic_of(memory, GATE, rules).entries))
    finally:
        stop.set()
        teacher.join()
    assert counts == sorted(counts), "what was found stays found"
    assert len(topic_of(memory, GATE, rules).entries) == min(256, 1 + taught[0])
