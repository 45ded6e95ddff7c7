"""Answers in words: bring what the memory holds about a picture and a question, and let the fusion decoder write."""

from __future__ import annotations

from collections.abc import Sequence

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.answer import UNKNOWN, Answer, Evidence, Level
from edge_ravlm.runtime.deadline import Deadline, Pace
from edge_ravlm.runtime.encoders import ImageEncoder, Look, TextEncoder
from edge_ravlm.runtime.fusion.decoder import FusionDecoder, Generated
from edge_ravlm.runtime.fusion.layout import Passage
from edge_ravlm.runtime.fusion.retrieval import Found, Retriever
from edge_ravlm.runtime.memory import Memory, Where

MOST_HOPS = 2

_EVIDENCE, _LEAST_SHARE = 3, 0.1
"""At most so many entries are named, each with at least this share of the answer copied from it."""


class Generator:
    """Generates answers from one memory.

    Args:
        bundle: an opened bundle with a fusion decoder in this flavour.
        flavor: which of its quantization flavours.
        threads: CPU threads of the decoder; 0 leaves the choice to the backend.
        memory: where to look.
        image: the flavour's image encoder; a first answer about nothing warms the decoder up.
        text: its text encoder.
    """

    def __init__(
        self, bundle: Bundle, flavor: str, threads: int, memory: Memory, image: ImageEncoder, text: TextEncoder
    ) -> None:
        self._decoder = FusionDecoder(bundle, flavor, threads)
        self._retriever = Retriever(memory, text, self._decoder.spec.entries)
        self._hop_pace = Pace()
        passages = [Passage("the gate is open")] * self._decoder.spec.entries
        prompt = self._decoder.lay_out("is the gate open?", passages)
        self._decoder.generate(self._decoder.prefill(prompt, image.look(image.preprocess.buffer()).cells))

    def close(self) -> None:
        """Release the decoder."""
        self._decoder.close()

    def answer(
        self, question: str, look: Look, frame_time: float, scope: Where, deadline: Deadline, hops: int
    ) -> Answer | None:
        """Answer within the deadline; None when there is no time for a first token.

        Args:
            question: a checked one.
            look: at the picture.
            frame_time: when the picture was captured.
            scope: which memories may be used.
            deadline: its stages become ``search``, ``second_hop``, ``prefill`` and ``decode``.
            hops: 2 searches once more with what was found first, when there is time for it.
        """
        decoder, spec = self._decoder, self._decoder.spec
        needed_ms = decoder.prefill_pace.ms + decoder.step_pace.ms
        with deadline.stage("search"):
            found = self._retriever.first_hop(question, look.embedding, scope)
        if hops > 1 and deadline.left_ms() >= needed_ms + self._hop_pace.ms:
            with deadline.stage("second_hop"), self._hop_pace.run():
                found = self._retriever.with_second_hop(look.embedding, scope, found)
        if deadline.left_ms() < needed_ms:
            return None
        with deadline.stage("prefill"):
            prompt = decoder.lay_out(question, [one.passage for one in found])
            state = decoder.prefill(prompt, look.cells)
        with deadline.stage("decode"):
            generated = decoder.generate(state, left_ms=deadline.left_ms, abstain_above=spec.abstain_above)
        if generated.abstention >= spec.abstain_above:
            reason = "neither the picture nor what was taught answers this"
            doubt = max(0.0, 1 - generated.abstention)
            return Answer(UNKNOWN, doubt, Level.GENERATED, (), deadline.latency(), frame_time, reason)
        if not generated.text:
            return None
        return Answer(
            generated.text,
            min(1.0, generated.confidence),
            Level.GENERATED,
            _evidence(found, generated),
            deadline.latency(),
            frame_time,
            complete=generated.complete,
        )


def check_hops(hops: int) -> int:
    """The number of hops; raises UsageError unless it is 1 to MOST_HOPS."""
    if hops not in range(1, MOST_HOPS + 1):
        raise UsageError("hops", expected=f"1 to {MOST_HOPS}", got=str(hops), do="give for instance --hops 2")
    return hops


def _evidence(found: Sequence[Found], generated: Generated) -> tuple[Evidence, ...]:
    """The entries that the answer was copied from, by share."""
    order = sorted(range(len(found)), key=lambda i: (-generated.weights[i], i))
    best = [found[i] for i in order[:_EVIDENCE] if generated.weights[i] >= _LEAST_SHARE]
    return tuple(Evidence(one.id, one.passage.text, _score(one.passage)) for one in best)


def _score(passage: Passage) -> float:
    return passage.text_cosine if passage.image_cosine is None else passage.image_cosine
