"""The main job: show it, name it, ask it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import EdgeRavlmError, MemoryFault, UsageError
from edge_ravlm.frames import Frame, Pixels, Region
from edge_ravlm.runtime.answer import UNKNOWN, Answer, Evidence, Level
from edge_ravlm.runtime.arguments import check_region, check_where
from edge_ravlm.runtime.deadline import Deadline, Paces, check_budget
from edge_ravlm.runtime.encoders import ImageEncoder, Look, TextEncoder, check_question
from edge_ravlm.runtime.fusion.decoder import no_decoder
from edge_ravlm.runtime.generation import Generator, check_hops
from edge_ravlm.runtime.later import Later
from edge_ravlm.runtime.looking import AFTER_LOOKING, Looking, View
from edge_ravlm.runtime.memory import Memory, NewEntry, Where
from edge_ravlm.runtime.questions import (
    OPEN_QUESTIONS,
    Standing,
    Topic,
    find_topic,
    openness,
    scope_of,
    with_neighbours,
)
from edge_ravlm.runtime.scene import is_still
from edge_ravlm.runtime.searching import Searcher
from edge_ravlm.runtime.teaching import Teacher, nothing_said
from edge_ravlm.runtime.voting import Vote, is_sure, vote

_STANDING_QUESTIONS = 64
"""Kept between frames, the ones asked last. Each holds up to 1 MB of its topic's vectors (measured: 0.8 MB)."""

_EVIDENCE = 3

_LATER_S = 1.0
"""Seconds after which the decoder is opened if no answer in words was wanted before."""

Picture = Frame | NDArray[Any]
Vector = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A question that is about to be asked, as ``Ravlm.ask`` takes it; ``hops`` is 0 for a retrieved answer."""

    frame: Frame
    question: str
    region: Region | None = None
    where: Where | None = None
    budget_ms: float | None = None
    hops: int = 0
    fresh: bool = False


class Ravlm:
    """A bundle and a memory, ready to be taught and asked. Safe to use from several threads.

    Args:
        bundle: an opened bundle.
        memory: an opened memory of the bundle's spaces; closed with this object.
        flavor: which of the bundle's quantization flavours to run.
        budget_ms: from a frame's capture to its answer, unless a call says otherwise.
        threads: CPU threads of the image encoder and the fusion decoder.
        backend: what runs the image encoder of a CPU's flavour, see ``backends.choice.open_fastest``.
        image: an encoder of the bundle's image space to take in place of the bundle's own; closed with this object.
    """

    def __init__(
        self,
        bundle: Bundle,
        memory: Memory,
        *,
        flavor: str,
        budget_ms: float,
        threads: int,
        backend: str | None = None,
        image: ImageEncoder | None = None,
    ) -> None:
        self.bundle, self.memory, self.flavor = bundle, memory, flavor
        self.budget_ms = check_budget(budget_ms)
        self._rules = bundle.manifest.answering
        self._image = image = ImageEncoder(bundle, flavor, threads, backend) if image is None else image
        self._text = text = TextEncoder(bundle, flavor)
        self._generator: Later[Generator] | None = None
        self._searcher = Searcher(bundle, memory, image, text)
        self._teacher = Teacher(bundle, flavor, image, text)
        self._open_questions = self._text.embed(OPEN_QUESTIONS)
        self._paces = Paces()
        self._looking = Looking(image, self._paces, glimpse=self._rules.glimpse_above < 1)
        if bundle.manifest.flavor(flavor).fusion is not None:
            self._generator = Later(lambda: Generator(bundle, flavor, threads, memory, image, text), _LATER_S)
        self._standing: OrderedDict[tuple[str, str, Region | None, Where, int], Standing] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def backend(self) -> str:
        """What runs the image encoder now."""
        return self._image.backend

    @property
    def processors(self) -> tuple[int, ...]:
        """Where a thread that does nothing but ask is best kept, apart from the encoder's; without any, anywhere."""
        return self._image.processors

    def settle(self) -> None:
        """Wait until all models are there, and the encoder's in the library that it will go on with: for benchmarks."""
        if self._generator is not None:
            self._generator.get()
        self._image.settle()

    def __enter__(self) -> Ravlm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release models and memory; what was remembered is already on disk."""
        if self._generator is not None:
            self._generator.close()
        self.memory.close()
        self._image.close()
        self._text.close()

    # -- teach -------------------------------------------------------------------------------------------------

    def remember(
        self,
        picture: Picture,
        text: str,
        *,
        answer: str | None = None,
        tags: Mapping[str, str | int | float | bool] | None = None,
        region: Region | None = None,
    ) -> int:
        """Teach one picture and what it shows; durable and in use when this returns.

        Args:
            picture: a Frame, or uint8 [h, w, 3] BGR.
            text: what it shows, in a sentence.
            answer: the short answer to give, if not the sentence itself.
            tags: to filter by, for instance ``{"camera": "drive"}``.
            region: the part of the picture that shows it.

        Returns:
            The entry's id.
        """
        if isinstance(text, str) and not text:  # ``entry`` may take a picture without words; teaching is naming
            raise nothing_said()
        return self.memory.add([self.entry(picture, text, answer=answer, tags=tags, region=region)])[0]

    def entry(
        self,
        picture: Picture | None,
        text: str,
        *,
        answer: str | None = None,
        tags: Mapping[str, str | int | float | bool] | None = None,
        region: Region | None = None,
        modality: str | None = None,
        at: float | None = None,
    ) -> NewEntry:
        """What ``remember`` adds, for adding many at once; without a picture it is a text to be found by text.

        In a bundle with a meaning space a picture's text may be empty: searches find it by what it shows, and no
        answer is made from it.
        """
        return self._teacher.entry(picture, text, answer=answer, tags=tags, region=region, modality=modality, at=at)

    def forget(self, ids: Iterable[int] | int) -> int:
        """Remove entries, or one; returns how many there were."""
        return self.memory.remove(ids)

    # -- ask ---------------------------------------------------------------------------------------------------

    def ask(
        self,
        picture: Picture,
        question: str,
        *,
        region: Region | None = None,
        where: Where | None = None,
        budget_ms: float | None = None,
        generate: bool | None = None,
        hops: int = 1,
        hold: bool = True,
        fresh: bool = False,
    ) -> Answer:
        """Answer a question about a picture from the memory.

        Args:
            picture: a Frame, whose capture starts the clock; with uint8 [h, w, 3] BGR, or a frame that was read from a
                file, the call starts it.
            question: 1 to 1,000 characters.
            region: look only here; a named region also answers only from what was taught in it.
            where: which memories may be used.
            budget_ms: for this answer.
            generate: True lets the fusion decoder write the answer; where the budget does not allow that, the answer
                is a retrieved one. None leaves the choice to the runtime, which retrieves.
            hops: how often a generated answer may search; the second time with what it found the first time.
            hold: whether a camera's last answer may stand in for one that there is no time for.
            fresh: look anew, even if nothing moved since the last answer; nothing is held either.

        Raises:
            BundleError: ``generate`` of a bundle without a fusion decoder.
        """
        self.memory.check_open()
        hops = check_hops(hops)
        if generate and self._generator is None:
            raise no_decoder(self.bundle, self.flavor)
        frame = Frame.of(picture)
        deadline = Deadline(self.budget_ms if budget_ms is None else budget_ms, _since(frame), self._paces)
        generator = None
        if generate and self._generator is not None:
            with deadline.stage("load") if not self._generator.ready else nullcontext():
                generator = self._generator.get()
        standing = self._stand(frame, check_question(question), region, where, hops if generator else 0)

        def answer(version: int) -> Answer:
            standing.refresh(version)
            glimpse = generator is None and self._looking.glimpses and self._topic(standing, deadline).few
            with deadline.stage("preprocess"):
                pixels = self._looking.pixels(frame, region, glimpse=glimpse)
            earlier = None if fresh else self._earlier(standing, frame, pixels, deadline, hold)
            if earlier is not None:
                return earlier
            found, hurried = None, False
            if generator is None:
                look = self._looking.first(frame, region, deadline, glimpse=glimpse and not standing.in_doubt)
            else:
                look = self._looking.look(frame, region, deadline)
                look = self._looking.closer(frame, region, look, deadline)
                hurried = look.is_first(region)
                found = generator.answer(question, look, frame.captured_at, standing.scope, deadline, hops)
            lasting = generator is None or (found is not None and found.complete)
            if found is None:
                found, sure = self._answer(standing, look, frame, deadline)
                standing.learn(glimpse=look.glimpse, enough=sure)
                better = look if sure else self._looking.better(frame, region, look, deadline)
                if better is not look:
                    found, _ = self._answer(standing, better, frame, deadline)
                hurried = better is look and not sure and look.is_first(region)
            if lasting:  # what the clock cut short may be done better the next time
                standing.settle(frame, pixels, found, hurried=hurried)
            return found

        with standing.lock:
            return self._settled(answer)

    def look_ahead(self, asked: Sequence[Asked]) -> int:
        """Look at what several questions are about, several pictures in one run, before each is asked.

        Does so where ``learn_together`` found that to be quicker, and only as far as all answers still come in time.

        Returns:
            How many, from the first on, need no look any more; ``ask`` looks at the others as if nothing had happened.
        """
        views: list[View | None] = []
        for one in asked:
            budget_ms = self.budget_ms if one.budget_ms is None else one.budget_ms
            views.append(self._view(one, _since(one.frame) + budget_ms / 1e3))
        known = self._looking.together([view for view in views if view is not None])
        waiting = (number for number, view in enumerate(views) if view is not None)
        return next(islice(waiting, known, None), len(views))

    def _view(self, asked: Asked, by: float) -> View | None:
        """What to look at; None where nothing moved since the last answer, or where ``ask`` will say what is wrong."""
        try:
            standing = self._stand(asked.frame, check_question(asked.question), asked.region, asked.where, asked.hops)
            glimpse = self._looking.glimpses and asked.hops == 0 and standing.may_be_few
            pixels = self._looking.pixels(asked.frame, asked.region, glimpse=glimpse)
        except EdgeRavlmError:
            return None
        known = standing.pixels if standing.version == self.memory.version and not asked.fresh else None
        still = known is not None and known.shape == pixels.shape and is_still(known, pixels)
        return None if still else View(asked.frame, asked.region, by, glimpse and not standing.in_doubt)

    def learn_together(self) -> dict[int, float]:
        """See ``Looking.learn_together``: for those who will ``look_ahead``."""
        return self._looking.learn_together()

    def _settled(self, look: Callable[[int], T]) -> T:
        """What ``look`` finds in a version of the memory; once more when what it had found was forgotten meanwhile."""
        while True:
            version = self.memory.version
            try:
                return look(version)
            except MemoryFault:
                if self.memory.version == version:
                    raise

    def _stand(self, frame: Frame, question: str, region: Region | None, where: Where | None, hops: int) -> Standing:
        """The camera's standing question; hops is 0 where nothing is to be generated."""
        scope = scope_of(check_where(where), check_region(region))
        key = (frame.source if frame.index >= 0 else "", question, region, scope, hops)
        with self._lock:
            standing = self._standing.setdefault(key, Standing(question, region, scope))
            self._standing.move_to_end(key)
            while len(self._standing) > _STANDING_QUESTIONS:
                self._standing.popitem(last=False)
        return standing

    def _earlier(
        self, standing: Standing, frame: Frame, pixels: Pixels, deadline: Deadline, hold: bool
    ) -> Answer | None:
        """The last answer, if nothing moved since, or if it may be held for want of time."""
        if standing.answer is None or standing.pixels is None:
            return None
        with deadline.stage("compare"):
            still = is_still(standing.pixels, pixels)
        if still and standing.hurried and deadline.fits("encode", "second_look", *AFTER_LOOKING):
            return None
        if not still and not (hold and standing.may_hold(frame) and self._too_short(deadline)):
            return None
        standing.holding = not still
        level = Level.CACHED if still else Level.HELD
        return replace(standing.answer, level=level, latency=deadline.latency())

    def _too_short(self, deadline: Deadline) -> bool:
        """Whether a new answer would come late while the last one is still in time."""
        return deadline.left_ms() > 0 and not deadline.fits("encode", *AFTER_LOOKING)

    def _topic(self, standing: Standing, deadline: Deadline) -> Topic:
        """What talks about the question; sought once for each state of the memory."""
        if standing.topic is None:
            with deadline.stage("search"):
                question = self._text.embed_question(standing.question)
                about = openness(standing.question, float((self._open_questions @ question).max()), self._rules)
                standing.topic = find_topic(
                    self.memory, standing.question, question, about, standing.scope, self._rules
                )
        return standing.topic

    def _answer(self, standing: Standing, look: Look, frame: Frame, deadline: Deadline) -> tuple[Answer, bool]:
        """The answer, and whether a closer look would not change it."""
        topic = self._topic(standing, deadline)
        with deadline.stage("search"):
            if topic.crowded:
                topic = with_neighbours(self.memory, topic, look.embedding, self._rules)
        with deadline.stage("vote"):
            outcome = None if topic.ballot is None else vote(look.embedding, topic.ballot, self._rules)
            text, confidence, evidence, reason = self._decide(topic, outcome)
        answer = Answer(text, confidence, Level.RETRIEVED, evidence, deadline.latency(), frame.captured_at, reason)
        return answer, outcome is None or is_sure(outcome, self._rules, glimpse=look.glimpse)

    def _decide(self, topic: Topic, outcome: Vote | None) -> tuple[str, float, tuple[Evidence, ...], str]:
        rules, ballot = self._rules, topic.ballot
        if topic.silence:
            return UNKNOWN, 0.0, (), topic.silence
        if ballot is None or outcome is None:
            return self._from_texts(topic)
        if outcome.nearest < rules.image_floor:
            return UNKNOWN, 0.0, (), "the picture looks like nothing that was taught about this"
        members = np.flatnonzero(ballot.labels == ballot.labels[outcome.winner])
        best = members[np.argsort(-outcome.scores[members], kind="stable")[:_EVIDENCE]]
        evidence = tuple(
            Evidence(int(ballot.ids[i]), topic.entries[int(ballot.ids[i])].text, float(outcome.scores[i])) for i in best
        )
        entry = topic.entries[int(ballot.ids[outcome.winner])]
        answer = entry.answer or entry.text
        if outcome.confidence >= rules.abstain_below:
            return answer, outcome.confidence, evidence, ""
        why = "too close to call" if ballot.answers > 1 else "not enough like the only answer taught"
        return UNKNOWN, outcome.confidence, evidence, f"{why}; the best guess is '{answer}'"

    def _from_texts(self, topic: Topic) -> tuple[str, float, tuple[Evidence, ...], str]:
        """Memories without pictures: the one whose text is nearest to the question."""
        if not topic.entries:
            return UNKNOWN, 0.0, (), "no memory has a picture to compare with"
        entry = next(iter(topic.entries.values()))
        evidence = (Evidence(entry.id, entry.text, topic.score),)
        return entry.answer or entry.text, min(1.0, max(0.0, topic.score)), evidence, ""

    # -- search ------------------------------------------------------------------------------------------------

    def search(
        self,
        *,
        text: str | None = None,
        picture: Picture | None = None,
        region: Region | None = None,
        k: int = 10,
        where: Where | None = None,
        of: Literal["image", "text"] = "image",
    ) -> list[Evidence]:
        """The memories nearest to a text, to a picture, or to both (then by the mean of the two cosines).

        Where the bundle has a meaning space, a text finds pictures by what they show too, whatever was said of them:
        the larger of the two cosines counts.

        Rare words of a text (names, codes, numbers) that a memory repeats count beside its cosine: the first need not
        have the highest score, which is the cosine alone.

        Args:
            text: to be compared with what memories say and show.
            picture: a Frame, or uint8 [h, w, 3] BGR.
            region: the part of the picture to look at.
            k: how many, at most.
            where: which memories may be found.
            of: what of the memories the picture is compared with: their pictures, or (in a bundle with a meaning
                space) their texts.
        """
        if of not in ("image", "text"):
            raise UsageError(
                "search", expected="of='image' or of='text'", got=f"of={of!r}", do="leave it out for pictures"
            )
        where = check_where(where)
        found = self._searcher.queries(text, picture, check_region(region), of)
        if not found or not isinstance(k, int | np.integer) or k < 1:
            raise UsageError(
                "search",
                expected="a text or a picture, and k of at least 1",
                got=f"{'no query' if not found else f'k={k!r}'}",
                do="give for instance text='garage door'",
            )
        return self._settled(lambda _: self._searcher.nearest(found, k, where or Where()))


def _since(frame: Frame) -> float:
    """When somebody began to wait for what a frame shows, ``time.monotonic()`` seconds."""
    return time.monotonic() if frame.recorded else frame.captured_at
