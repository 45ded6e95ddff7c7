"""A standing question: which memories talk about it, and what was answered last. Rebuilt when the memory changes."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.memory import Entry, Memory, Where
from edge_ravlm.runtime.voting import FEW, Ballot

REGION_TAG = "region"
"""The tag that holds the name of the region an entry was taught in."""

OPEN_QUESTIONS = (
    "what is this?",
    "what is that?",
    "who is this?",
    "which one is this?",
    "what kind of thing is this?",
    "what do you see?",
    "what am I looking at?",
    "what is shown here?",
    "what is in the picture?",
    "what is in front of the camera?",
    "describe this",
    "identify this object",
    "name this",
)
"""Questions that name nothing: they are about the picture itself, so any memory in scope may answer them."""

OPEN_ABOVE = 0.55
"""Cosine to one of these from which a question is taken for one of them. Of 26 about things that nobody taught ("is it
raining?") three reach it, of 22 that name nothing ("tell me what you see") all; at 0.34, 20 do and all. These 48 were
in view when the wordings were chosen. One that points at the picture ("what does this sign mean?") needs no more than
to be related."""

_POINTING = re.compile(r"\b(this|these)\b|\bthat\W*$", re.IGNORECASE)

_CLOSED = re.compile(
    r"\W*(am|are|can|could|did|do|does|had|has|have|is|may|might|must|shall|should|was|were|will|would)\b"
    r"(?!.*\b(describe|identify|name|say|tell|what|which|who)\b)",
    re.IGNORECASE | re.DOTALL,
)
"""Questions for a yes or no: "the gate is closed" is no answer to "is anybody here?", whatever the picture shows."""

_TEXT_ARM, IMAGE_ARM = 256, 64
"""How many memories each retrieval brings. The image arm is only needed when the text arm is full."""

_NAMING = 32
"""Memories among which the one that names the topic is looked for."""

_DOUBTED, _BY_GLIMPSE, _BY_FULL_LOOK = 0.5, 1 / 8, 1 / 64
"""A glimpse takes half to three quarters of a full look's time: where more than half are followed by one, none pays.
How much a glimpse tells about those to come, and how soon a doubt fades: every tenth look or so is a glimpse."""

_NAMED = 5
"""At most so many regions are named to somebody who asks about another one."""

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """The memories that talk about a question.

    Attributes:
        scope: which memories may be used at all.
        name: float32 [d], the text vector that stands for the topic; None when the question is about the picture.
        score: cosine of the question to the text that names the topic.
        entries: by id, the memories on the topic, most related first; without their thumbnails, which many standing
            questions at once would keep in main memory.
        ballot: those that have a picture; None when there are none.
        crowded: more memories are on the topic than were brought, so each frame brings its own neighbours.
        silence: why the question cannot be answered, else empty.
    """

    scope: Where
    name: Vector | None = None
    score: float = 0.0
    entries: dict[int, Entry] = field(default_factory=dict)
    ballot: Ballot | None = None
    crowded: bool = False
    silence: str = ""

    @property
    def few(self) -> bool:
        """Whether there are so few answers to tell apart that a glimpse may do."""
        return not self.crowded and (self.ballot is None or self.ballot.answers <= FEW)


@dataclass
class Standing:
    """One question about one region in one scope, between frames.

    Attributes:
        lock: held while a frame is answered; different questions do not wait for each other.
        version: the memory's version that topic and answer belong to.
        source: the camera that ``answer`` was computed for, empty for a picture that came from none.
        pixels: the encoder input that ``answer`` was computed from.
        holding: whether ``answer`` was given last for a frame on which something had moved.
        hurried: whether there was no time for the closer look that ``answer`` needed.
        doubt: share of the glimpses at the region that were not enough, of late.
    """

    question: str
    region: Region | None
    scope: Where
    lock: threading.Lock = field(default_factory=threading.Lock)
    version: int = -1
    topic: Topic | None = None
    source: str = ""
    pixels: Pixels | None = None
    answer: Answer | None = None
    holding: bool = False
    hurried: bool = False
    doubt: float = 0.0

    def settle(self, frame: Frame, pixels: Pixels, answer: Answer, *, hurried: bool = False) -> None:
        """Keep what was just answered for the frames to come."""
        self.source, self.pixels, self.answer = frame.source, pixels, answer
        self.holding, self.hurried = False, hurried

    def may_hold(self, frame: Frame) -> bool:
        """Whether the last answer may stand in for one that there is no time for.

        Only from one frame of a camera to another, which most likely still shows the same; and never twice in a row,
        so that a machine that is always too slow, or was slow for a moment, looks again.
        """
        return frame.index >= 0 and frame.source == self.source and not self.holding

    @property
    def may_be_few(self) -> bool:
        """Whether it is not known yet that there are many answers to tell apart."""
        topic = self.topic
        return topic is None or topic.few

    @property
    def in_doubt(self) -> bool:
        """Whether a full look at the region comes sooner than a glimpse that is most likely not enough, and that look.

        Of a whole picture a closer look follows, which costs no more than the glimpse: it is the other way round there.
        """
        return self.region is not None and self.doubt > _DOUBTED

    def learn(self, *, glimpse: bool, enough: bool) -> None:
        """Keep in mind whether a first look was enough; after some full ones a glimpse is tried again."""
        if glimpse:
            self.doubt += (float(not enough) - self.doubt) * _BY_GLIMPSE
        else:
            self.doubt -= self.doubt * _BY_FULL_LOOK

    def refresh(self, version: int) -> None:
        """Forget what an older memory said."""
        if version != self.version:
            self.version, self.topic, self.pixels, self.answer = version, None, None, None
            self.doubt = 0.0


def scope_of(where: Where | None, region: Region | None) -> Where:
    """A named region answers from what was taught in it; no region, or an unnamed one, from everything."""
    where = where or Where()
    if region is None or not region.name:
        return where
    return replace(where, tags={**where.tags, REGION_TAG: region.name})


def openness(question: str, likeness: float, rules: Answering) -> float:
    """How surely a question is about the picture itself, whatever memories talk about; -1 where it is not.

    One for a yes or no is so only where it points at the picture ("is this a stop sign?").

    Args:
        question: the question.
        likeness: its cosine to the nearest of ``OPEN_QUESTIONS``.
        rules: the bundle's constants.
    """
    if _POINTING.search(question):
        return likeness if likeness >= rules.text_floor else -1.0
    return likeness if likeness >= max(OPEN_ABOVE, rules.text_floor) and not _CLOSED.match(question) else -1.0


def find_topic(memory: Memory, question: str, vector: Vector, openness: float, scope: Where, rules: Answering) -> Topic:
    """Retrieve the memories whose text is about the question.

    The memory whose text is nearest names the topic; the memories whose texts are like *its* text are the topic's
    other states, which a question need not resemble ("is anyone here?" – "nobody is here").

    Args:
        memory: where to look.
        question: the question; rare words of it (names, codes) count beside its vector.
        vector: float32 [d], the question's.
        openness: see ``openness``.
        scope: which memories may be used.
        rules: the bundle's constants.
    """
    found = memory.search("text", vector, _NAMING, scope, words=question)
    if not found:
        return Topic(scope=scope, silence=_why_empty(memory, scope))
    if openness >= max(0.0, *(hit.score for hit in found)):  # about the picture itself: its neighbours decide
        return Topic(scope=scope, crowded=True)
    best = next((hit for hit in found if hit.score >= rules.text_floor), None)
    if best is None:
        return Topic(scope=scope, silence="no memory talks about this")
    name = memory.vectors("text", [best.id])[0]
    hits = memory.search("text", name, _TEXT_ARM, scope)
    ids = [hit.id for hit in hits if hit.score >= rules.sibling_floor]
    topic = Topic(scope=scope, name=name, score=best.score, crowded=len(ids) == _TEXT_ARM)
    topic = _with(memory, topic, ids, _pictured(memory, ids))
    if REGION_TAG in scope.tags and topic.ballot is not None and topic.ballot.answers == 1:
        loners = _loners(memory, [hit.id for hit in hits if hit.id not in topic.entries], rules)
        topic = _with(memory, topic, loners, _pictured(memory, loners))
    return topic


def _loners(memory: Memory, ids: Sequence[int], rules: Answering) -> list[int]:
    """Those of the entries whose text is like no other entry's that says something else.

    "Somebody is here" and "the path is empty" are about one thing in words that no encoder brings together. In a named
    region, texts that belong to no other topic are taken for the missing answers of the one that was asked about.
    """
    if not ids:
        return []
    texts = np.array([entry.text for entry in memory.get(ids)], dtype=object)
    vectors = memory.vectors("text", ids)
    alike = (vectors @ vectors.T >= rules.sibling_floor) & (texts[:, None] != texts[None, :])
    return [id_ for id_, has_sibling in zip(ids, alike.any(axis=1), strict=True) if not has_sibling]


def with_neighbours(memory: Memory, topic: Topic, picture: Vector, rules: Answering) -> Topic:
    """The topic plus this picture's nearest memories that are on it too."""
    hits = memory.search("image", picture, IMAGE_ARM, topic.scope)
    near = [hit.id for hit in hits if hit.id not in topic.entries]
    if topic.name is None:
        near = [entry.id for entry in memory.get(near) if entry.text]  # a picture of which nothing is said has no say
    elif near:
        hits = memory.search("text", topic.name, len(near), replace(topic.scope, ids=frozenset(near)))
        near = [hit.id for hit in hits if hit.score >= rules.sibling_floor]
    return _with(memory, topic, near, near)


def _with(memory: Memory, topic: Topic, ids: Sequence[int], pictured: Sequence[int]) -> Topic:
    """The topic plus these entries, of which ``pictured`` have a picture's vector and so a vote."""
    if not ids:
        return topic
    added = (replace(entry, thumbnail=None) for entry in memory.get(ids))
    entries = {**topic.entries, **{entry.id: entry for entry in added}}
    voters = [*([] if topic.ballot is None else topic.ballot.ids.tolist()), *pictured]
    ballot = None
    if voters:
        said = [gist(entries[id_].answer or entries[id_].text) for id_ in voters]
        ballot = Ballot.of(voters, said, memory.vectors("image", voters))
    return replace(topic, entries=entries, ballot=ballot)


def gist(text: str) -> str:
    """What an answer says; its case, spacing and full stop do not make it another one."""
    return " ".join(text.casefold().split()).rstrip(".!") or text


def _pictured(memory: Memory, ids: Sequence[int]) -> list[int]:
    """Those of the entries that have a picture's vector, whatever they call themselves."""
    if not ids:
        return []
    anything = np.ones(memory.spaces["image"].dim, np.float32)  # every vector is a hit, so any query will do
    found = {hit.id for hit in memory.search("image", anything, len(ids), Where(ids=frozenset(ids)))}
    return [id_ for id_ in ids if id_ in found]


def _why_empty(memory: Memory, scope: Where) -> str:
    if not len(memory):
        return "nothing was taught yet"
    region = scope.tags.get(REGION_TAG)
    if not region or memory.count(Where(tags={REGION_TAG: region})):
        return "no memory matches the filter"
    taught = [f"'{name}'" for name in memory.tag_values(REGION_TAG, _NAMED + 1)]
    named = ", ".join([*taught[:_NAMED], "…"] if len(taught) > _NAMED else taught)
    return f"nothing was taught in region '{region}'" + (f"; regions taught: {named}" if named else "")
