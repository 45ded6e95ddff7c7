"""The parity gate: does the quantized bundle behave like the full-precision one, on the session that ships?

Everything is judged on held-out pictures through the runtime's own sessions, opened with the options in the manifest. A
figure below its limit stops the export; the report says which, by how much, and which layer to keep in floating point.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.export.answering import Quality, answers, see
from edge_ravlm.export.judging import JudgeSet, prepared
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.manifest import Answering, Closer, Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.backends import Session, open_session
from edge_ravlm.runtime.encoders import GOLDEN_COSINE, Eye, Look

Vectors = NDArray[np.float32]

OPSET_LIMIT, IR_LIMIT = 20, 10
"""What ONNX Runtime 1.23 (Python 3.10) and TensorRT 10.3 load."""

_SPEED_ROUNDS = 30
_ROUNDING = 4


class GateError(EdgeRavlmError):
    """A quantized model that does not behave like its original."""


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits; fractions of 1, speed as full-precision time over quantized time.

    Attributes:
        cosine_mean, cosine_p1: at least.
        glimpse_cosine_mean, glimpse_cosine_p1: at least, where the bundle looks closer.
        recall1_loss, recall10_loss, cross_recall1_loss: at most.
        answer_agreement: at least.
        decoder_agreement: at least, where there is a decoder.
        speedup_vs_fp32: at least, where the session can run here.
        text_cosine_mean: at least.
        meaning_cosine_mean: at least, where the image model knows the text space.
        student_recall_retention: at least, where there is a teacher.
    """

    cosine_mean: float = 0.995
    cosine_p1: float = 0.985
    glimpse_cosine_mean: float = 0.995
    glimpse_cosine_p1: float = 0.985
    recall1_loss: float = 0.005
    recall10_loss: float = 0.005
    cross_recall1_loss: float = 0.01
    answer_agreement: float = 0.98
    decoder_agreement: float = 0.95
    speedup_vs_fp32: float = 1.0
    text_cosine_mean: float = 0.995
    meaning_cosine_mean: float = 0.98
    student_recall_retention: float = 0.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one flavour; the fields are those of ``manifest.Parity``, unrounded ones as lists for plots.

    Attributes:
        cosines: of every picture's embedding to the full-precision one.
        glimpse_cosines: of every picture's glimpse; none where the bundle does not look closer.
        recall: recall@1 and @10 by who embedded: ``teacher``, ``fp32``, ``int8``, ``cross``.
        milliseconds: one picture, one thread, median: by session.
        spread: mean over dimensions of the embeddings' standard deviation; a constant output has 0.
        sensitivity: by layer, the cosine won back when it alone stays in floating point; empty unless the gate failed.
        failures: one sentence per limit that was missed.
    """

    images: int
    session: str
    cosine_mean: float
    cosine_p1: float
    recall1_loss: float
    recall10_loss: float
    cross_recall1_loss: float
    answer_agreement: float
    speedup_vs_fp32: float | None
    text_cosine_mean: float
    student_recall_retention: float | None
    student_speedup: float | None
    meaning_cosine_mean: float | None = None
    meaning_cosine_p1: float | None = None
    glimpse_cosine_mean: float | None = None
    glimpse_cosine_p1: float | None = None
    decoder_agreement: float | None = None
    spread: float
    spread_fp32: float
    cosines: list[float]
    glimpse_cosines: list[float] = []
    recall: dict[str, dict[str, float]]
    milliseconds: dict[str, float]
    sensitivity: dict[str, float] = {}
    answering: Quality | None = None
    failures: list[str] = []


@dataclass(frozen=True)
class Embedder:
    """An image model and how to run it, as the runtime would.

    Args:
        model: the ONNX file's bytes.
        spec: its entry in the manifest.
        preprocess: of the bundle.
        closer: of the bundle.
    """

    model: bytes
    spec: Model
    preprocess: Preprocess
    closer: Closer | None = None

    def session(self) -> Session:
        """One thread, so that the figures do not depend on the machine's load."""
        return open_session(self.model, self.spec, threads=1)

    def eye(self, *outputs: str) -> Eye:
        """It as the runtime looks with it; to be closed."""
        return Eye(self.session(), self.preprocess, self.closer, outputs)

    def studied(self, pictures: Sequence[Pixels]) -> Vectors:
        """Float32 [n, dim], as what is taught is embedded."""
        return self._seen(pictures, lambda eye, frame: eye.study(frame))

    def asked(self, pictures: Sequence[Pixels]) -> Vectors:
        """Float32 [n, dim], as what is asked about is embedded."""
        return self._seen(pictures, lambda eye, frame: eye.closer_look(frame))

    def glanced(self, pictures: Sequence[Pixels]) -> Vectors:
        """Float32 [n, dim], as a first look embeds what is asked about."""
        return self._seen(pictures, lambda eye, frame: eye.look(eye.preprocess(frame)))

    def glimpsed(self, pictures: Sequence[Pixels]) -> Vectors:
        """Float32 [n, dim], as a glimpse embeds what is asked about."""
        return self._seen(pictures, lambda eye, frame: eye.glimpses(eye.glimpse(frame))[0])

    def followed(self, pictures: Sequence[Pixels]) -> Vectors:
        """Float32 [n, dim], as a glimpse and the closer look after it embed what is asked about."""
        return self._seen(pictures, lambda eye, frame: eye.closer_look(frame, eye.glimpses(eye.glimpse(frame))[0]))

    def _seen(self, pictures: Sequence[Pixels], look: Callable[[Eye, Frame], Look]) -> Vectors:
        eye = self.eye()
        try:
            return np.stack([look(eye, Frame(picture)).embedding for picture in pictures])
        finally:
            eye.close()

    def __call__(self, pictures: Sequence[Pixels], output: str = "embedding") -> Vectors:
        """Float32 [n, dim] of an output."""
        session = self.session()
        rows = [session.run({"image": pixels}, (output,))[0][0] for pixels in prepared(pictures, self.preprocess)]
        session.close()
        return np.asarray(rows, np.float32)


@dataclass(frozen=True)
class Judged:
    """Vectors of one embedder over a judge set."""

    memories: Vectors
    queries: Vectors

    @property
    def all(self) -> Vectors:
        """Memories, then queries."""
        return np.concatenate([self.memories, self.queries])


def look(embed: Callable[[Sequence[Pixels]], Vectors], judge_set: JudgeSet) -> Judged:
    """Embed a judge set's memories and queries."""
    return Judged(embed(judge_set.memories), embed(judge_set.queries))


def recall(memories: Vectors, queries: Vectors, labels: NDArray[np.int64]) -> dict[str, float]:
    """Share of queries whose own memory is the nearest (@1), or among the nearest ten (@10).

    A memory that is as near as the own one counts as nearer: who cannot tell them apart has found nothing. So has who
    embeds as something that is not finite.
    """
    with np.errstate(invalid="ignore"):
        scores = queries @ memories.T
    scores[~np.isfinite(scores)] = -np.inf
    own = scores[np.arange(len(labels)), labels]
    rank = np.where(np.isfinite(own), (scores >= own[:, None]).sum(1) - 1, np.inf)
    return {"1": float((rank < 1).mean()), "10": float((rank < 10).mean())}


def judge(
    judge_set: JudgeSet,
    *,
    original: Embedder,
    shipped: Embedder,
    reference: Embedder,
    texts: tuple[Vectors, Vectors],
    rules: Answering,
    teacher: Teacher | None = None,
    timed: bool = True,
    meaning: bool = False,
) -> Figures:
    """Measure one flavour against full precision.

    Args:
        judge_set: held-out pictures.
        original: the full-precision student.
        shipped: what the bundle holds.
        reference: the ``cpu-u8`` flavour, whose memories the shipped one has to find.
        texts: text embeddings of full precision and of the shipped text model.
        rules: for the answers that are compared.
        teacher: what the student was distilled from.
        timed: whether the shipped session is the one that will run; a stand-in's speed means nothing.
        meaning: whether the models have that output.
    """
    fp32, int8 = look(original, judge_set), look(shipped, judge_set)
    base = int8 if reference is shipped else look(reference, judge_set)
    labels = judge_set.labels
    recalls = {
        "fp32": recall(fp32.memories, fp32.queries, labels),
        "int8": recall(int8.memories, int8.queries, labels),
        "cross": recall(base.memories, int8.queries, labels),
    }
    if teacher is not None:
        recalls["teacher"] = recall(teacher.judged.memories, teacher.judged.queries, labels)
    cosines = cosine(fp32.all, int8.all)
    glimpses = meanings = None
    if shipped.closer is not None:
        glimpses = cosine(*(embedder.glimpsed(judge_set.pictures) for embedder in (original, shipped)))
    if meaning:
        meanings = cosine(*(embedder(judge_set.queries, output="meaning") for embedder in (original, shipped)))
    same = [
        answers(a, rules) == answers(b, rules)
        for a, b in zip(see(judge_set.tasks, original), see(judge_set.tasks, shipped), strict=True)
    ]
    times = paired_ms({"fp32": original, "int8": shipped}, judge_set.memories[:_SPEED_ROUNDS], teacher)
    return Figures(
        images=len(cosines),
        session=f"{shipped.spec.backend} {shipped.spec.graph_optimization}",
        cosine_mean=_mean(cosines),
        cosine_p1=_p1(cosines),
        recall1_loss=round(recalls["fp32"]["1"] - recalls["int8"]["1"], _ROUNDING),
        recall10_loss=round(recalls["fp32"]["10"] - recalls["int8"]["10"], _ROUNDING),
        cross_recall1_loss=round(recalls["fp32"]["1"] - recalls["cross"]["1"], _ROUNDING),
        answer_agreement=round(float(np.concatenate(same).mean()), _ROUNDING) if same else 1.0,
        speedup_vs_fp32=round(times["fp32"] / times["int8"], 3) if timed else None,
        text_cosine_mean=_mean(cosine(*texts)),
        student_recall_retention=(
            None if teacher is None else round(recalls["int8"]["1"] / max(1e-9, recalls["teacher"]["1"]), _ROUNDING)
        ),
        student_speedup=round(times["teacher"] / times["int8"], 3) if timed and "teacher" in times else None,
        meaning_cosine_mean=None if meanings is None else _mean(meanings),
        meaning_cosine_p1=None if meanings is None else _p1(meanings),
        glimpse_cosine_mean=None if glimpses is None else _mean(glimpses),
        glimpse_cosine_p1=None if glimpses is None else _p1(glimpses),
        spread=float(int8.all.std(0).mean()),
        spread_fp32=float(fp32.all.std(0).mean()),
        cosines=cosines.round(_ROUNDING + 1).tolist(),
        glimpse_cosines=[] if glimpses is None else glimpses.round(_ROUNDING + 1).tolist(),
        recall=recalls,
        milliseconds={name: round(value, 3) for name, value in times.items()},
    )


@dataclass(frozen=True)
class Teacher:
    """What the student is held against.

    Attributes:
        judged: its vectors over the same judge set.
        model: it as ONNX with the input ``image`` uint8 [1, side, side, 3], to be timed; None when it has no such form.
        preprocess: of its own input size.
    """

    judged: Judged
    model: bytes | None
    preprocess: Preprocess


def failures(figures: Figures, gate: Gate, models: Mapping[str, bytes]) -> list[str]:
    """One sentence per limit that was missed; empty when the bundle may leave."""
    found = []
    for name in gate.__struct_fields__:
        limit, got = getattr(gate, name), getattr(figures, name)
        at_most = name.endswith("_loss")
        if got is not None and not (got <= limit if at_most else got >= limit):  # not: NaN fails as well
            found.append(f"{name} expected {'at most' if at_most else 'at least'} {limit:g}, got {got:g}")
    if not figures.spread > 0.5 * figures.spread_fp32:
        found.append(f"spread expected about {figures.spread_fp32:.3f}, got {figures.spread:.3f}: nearly constant")
    return found + [sentence for name, data in models.items() for sentence in _too_new(name, data)]


def with_decoder(figures: Figures, agreement: float, gate: Gate, models: Mapping[str, bytes]) -> Figures:
    """An encoder's figures with its decoder's agreement, and all failures; ``models`` hold the decoder's."""
    found = msgspec.structs.replace(figures, decoder_agreement=round(agreement, _ROUNDING))
    return msgspec.structs.replace(found, failures=failures(found, gate, models))


def pass_or_raise(figures: Figures, flavor: str) -> None:
    """Raise GateError with every limit that was missed, and what to do."""
    if not figures.failures:
        return
    worst = max(figures.sensitivity, key=figures.sensitivity.__getitem__, default=None)
    if worst is not None:
        keep = f"keep layer '{worst}' in floating point (recipe: quantize.keep_float)"
    elif figures.decoder_agreement is not None:  # it is trained once the encoders have passed
        keep = "train the decoder longer (recipe: fusion.steps)"
    else:
        keep = "use more pictures"
    raise GateError(
        f"parity gate of {flavor}",
        expected="a model that behaves like full precision",
        got="; ".join(figures.failures),
        do=f"{keep}, or type --allow-below-gate to ship it all the same, on record",
    )


def open_or_raise(worst: float, flavor: str) -> None:
    """Raise GateError where golden frames differ so much from full precision that no runtime opens the bundle."""
    if not worst >= GOLDEN_COSINE:
        raise GateError(
            f"golden frames of {flavor}",
            expected=f"a cosine of at least {GOLDEN_COSINE} to full precision, without which no runtime opens a bundle",
            got=f"{worst:.3f}",
            do="keep layers in floating point (recipe: quantize.keep_float) or calibrate on more pictures",
        )


def cosine(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Row by row, float64 [n]; a row that is not finite counts -1."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (a * b).sum(1) / lengths
    return np.where(np.isfinite(found), found, -1.0)


def _mean(cosines: NDArray[np.float64]) -> float:
    return round(float(cosines.mean()), _ROUNDING + 1)


def _p1(cosines: NDArray[np.float64]) -> float:
    """First percentile."""
    return round(float(np.quantile(cosines, 0.01)), _ROUNDING + 1)


def paired_ms(
    embedders: Mapping[str, Embedder], pictures: Sequence[Pixels], teacher: Teacher | None = None
) -> dict[str, float]:
    """Median milliseconds of one picture on one thread, the sessions taking turns so that drift hits all alike."""
    runs = {name: (e.session(), prepared(pictures, e.preprocess)) for name, e in embedders.items()}
    if teacher is not None and teacher.model is not None:
        session = open_session(teacher.model, Model(file="teacher"), threads=1)
        runs["teacher"] = (session, prepared(pictures, teacher.preprocess))
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-3, max(_SPEED_ROUNDS, len(pictures))):
        for name, (session, inputs) in runs.items():
            feed = {"image": inputs[turn % len(inputs)]}
            start = time.perf_counter()
            session.run(feed, ("embedding",))
            if turn >= 0:  # the first ones warm up
                spent[name].append((time.perf_counter() - start) * 1e3)
    for session, _ in runs.values():
        session.close()
    return {name: statistics.median(values) for name, values in spent.items()}


def _too_new(name: str, data: bytes) -> list[str]:
    model = onnx.load_model_from_string(data)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    found = []
    if opset > OPSET_LIMIT:
        found.append(f"{name} expected opset of at most {OPSET_LIMIT}, got {opset}")
    if model.ir_version > IR_LIMIT:
        found.append(f"{name} expected IR version of at most {IR_LIMIT}, got {model.ir_version}")
    return found
