"""The gate lets nothing through that does not behave like full precision, and says what is wrong with the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_ravlm.export import parity
from edge_ravlm.export.judging import JudgeSet, Task
from edge_ravlm.export.parity import Embedder, Figures, Gate, GateError, cosine, failures, judge, pass_or_raise, recall
from edge_ravlm.export.report import report_files
from edge_ravlm.manifest import Answering, Closer, Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.encoders import Eye
from edge_ravlm.runtime.voting import unit

pytestmark = pytest.mark.export

SHAPE = Preprocess(height=16, width=16)
RULES = Answering(image_floor=-1.0, text_floor=0.0, sibling_floor=0.0, sharpness=10.0, abstain_below=0.0)


def linear(matrix: np.ndarray, opset: int = 17, ir: int = 8, meaning: np.ndarray | None = None) -> bytes:
    """An encoder: the picture's pixels, centred, times a matrix, at unit length; ``meaning`` is that of its meaning."""
    matrices = {"embedding": matrix, "meaning": matrix if meaning is None else meaning}
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["floats", "middle"], ["centred"]),
        helper.make_node("Reshape", ["centred", "flat"], ["row"]),
    ]
    for name in matrices:
        nodes.append(helper.make_node("MatMul", ["row", f"{name}.matrix"], [f"{name}.product"]))
        nodes.append(helper.make_node("LpNormalization", [f"{name}.product"], [name], axis=1, p=2))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", matrix.shape[1]]) for name in matrices],
        [
            numpy_helper.from_array(np.float32(127), "middle"),
            numpy_helper.from_array(np.array([-1, 768]), "flat"),
            *(numpy_helper.from_array(one.astype(np.float32), f"{name}.matrix") for name, one in matrices.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return bytes(model.SerializeToString())


RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(768, 24))
ORIGINAL = Embedder(linear(MATRIX), Model(file="original"), SHAPE)


def pictures() -> JudgeSet:
    rng = np.random.default_rng(1)
    memories = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(60)]
    seen_again = [np.uint8(np.clip(m + rng.normal(0, 25, m.shape), 0, 255)) for m in memories]
    tasks = [
        Task([(memories[n], 0), (memories[n + 1], 1)], [(seen_again[n], 0), (seen_again[n + 1], 1)], [memories[n + 2]])
        for n in range(0, 57, 3)
    ]
    return JudgeSet(memories, seen_again, np.arange(60), tasks)


def judged(matrix: np.ndarray, **options: int) -> tuple[Figures, bytes]:
    model = linear(matrix, **options)
    return held(Embedder(model, Model(file="shipped"), SHAPE)), model


def held(shipped: Embedder, original: Embedder | None = None, **options: Any) -> Figures:
    """The figures of an embedder, against ORIGINAL if nothing else is said."""
    texts = np.float32(np.eye(4))
    fixed = {"reference": shipped, "texts": (texts, texts), "rules": RULES} | options
    return judge(pictures(), original=original or ORIGINAL, shipped=shipped, **fixed)


class Glimpsing(Embedder):
    """It looks closer, always at the whole and in the only size that it knows."""

    def eye(self, *outputs: str) -> Eye:
        return Eye(self.session(), self.preprocess, None, outputs)


class Blinking(Glimpsing):
    """Its full looks are right, its glimpses noise."""

    def glimpsed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return unit(np.float32(np.random.default_rng(0).normal(size=(len(pictures), 24))))

    followed = glimpsed


GATE = Gate(speedup_vs_fp32=0.0)  # both models are the same arithmetic here: their speed says nothing


def test_a_model_that_behaves_the_same_passes() -> None:
    figures, model = judged(MATRIX + RNG.normal(0, 0.01, MATRIX.shape))
    assert failures(figures, GATE, {"m": model}) == []
    assert figures.cosine_mean > 0.999
    assert figures.images == 120
    assert figures.recall["fp32"]["1"] == figures.recall["int8"]["1"] == 1.0
    pass_or_raise(figures, "cpu-u8")


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (RNG.normal(size=MATRIX.shape), "cosine_mean"),
        (MATRIX + RNG.normal(0, 0.35, MATRIX.shape), "cosine_p1"),
        (MATRIX * np.nan, "cosine_mean"),
        (np.zeros_like(MATRIX), "nearly constant"),
    ],
    ids=["another", "noisy", "nan", "zero"],
)
def test_a_model_that_does_not_is_stopped_and_named(matrix: np.ndarray, says: str) -> None:
    figures, model = judged(matrix)
    found = failures(figures, GATE, {"m": model})
    assert any(says in sentence for sentence in found)
    with pytest.raises(GateError, match=says):
        pass_or_raise(msgspec.structs.replace(figures, failures=found), "cpu-u8")


def test_a_model_whose_glimpses_are_noise_is_stopped() -> None:
    """What the runtime looks with first has to behave like full precision as well."""
    closer = Closer(side=16, margin=1.5)
    rules = msgspec.structs.replace(RULES, glimpse_above=0.9)
    original, shipped, bad = (
        kind(linear(MATRIX), Model(file="m"), SHAPE, closer) for kind in (Glimpsing, Glimpsing, Blinking)
    )
    good = held(shipped, original, rules=rules)
    assert (good.glimpse_cosine_mean, good.glimpse_cosine_p1, good.answer_agreement) == (1.0, 1.0, 1.0)
    assert failures(good, GATE, {}) == []
    figures = held(bad, original, rules=rules)
    assert figures.cosine_p1 == 1.0
    found = " ".join(failures(figures, GATE, {}))
    assert all(name in found for name in ("glimpse_cosine_mean", "glimpse_cosine_p1", "answer_agreement"))
    page = report_files("cpu-u8", figures, GATE, {})["parity/cpu-u8.md"].decode()
    assert f"| glimpse_cosine_p1 | {figures.glimpse_cosine_p1:.4f} |" in page
    without = held(Embedder(linear(MATRIX), Model(file="m"), SHAPE))
    assert (without.glimpse_cosine_mean, without.glimpse_cosine_p1) == (None, None)
    assert failures(without, GATE, {}) == []


def test_answers_are_compared_with_those_of_full_precision() -> None:
    figures, _ = judged(RNG.normal(size=MATRIX.shape))
    assert judged(MATRIX)[0].answer_agreement == 1.0
    assert figures.answer_agreement < 0.9


def test_queries_have_to_find_the_memories_of_the_reference() -> None:
    shipped, other = (Embedder(linear(m), Model(file="m"), SHAPE) for m in (MATRIX, RNG.normal(size=MATRIX.shape)))
    figures = held(shipped, reference=other)
    assert (figures.recall1_loss, figures.recall["int8"]["1"]) == (0.0, 1.0)
    assert figures.cross_recall1_loss == pytest.approx(1 - figures.recall["cross"]["1"], abs=1e-4)
    assert figures.cross_recall1_loss > 0.8


def test_the_meaning_is_held_against_that_of_full_precision() -> None:
    shipped = Embedder(linear(MATRIX, meaning=RNG.normal(size=MATRIX.shape)), Model(file="m"), SHAPE)
    figures = held(shipped, meaning=True)
    assert figures.cosine_mean > 0.999
    assert figures.meaning_cosine_mean is not None
    assert figures.meaning_cosine_mean < 0.5
    assert any("meaning_cosine_mean" in sentence for sentence in failures(figures, GATE, {}))


def test_a_decoder_that_writes_other_words_is_stopped() -> None:
    figures, model = judged(MATRIX)
    assert parity.with_decoder(figures, 0.96, GATE, {"m": model}).failures == []
    for agreement in (0.9, float("nan")):
        broken = parity.with_decoder(figures, agreement, GATE, {"m": model})
        with pytest.raises(GateError, match=r"decoder_agreement expected at least 0\.95.*fusion\.steps"):
            pass_or_raise(broken, "cpu-u8")
    newer = linear(MATRIX, opset=21, ir=10)
    assert any("fusion" in sentence for sentence in parity.with_decoder(figures, 1.0, GATE, {"fusion": newer}).failures)


def test_one_bad_picture_in_a_hundred_is_seen_by_the_first_percentile() -> None:
    rows = np.float32(np.eye(100))
    worse = rows.copy()
    worse[3] = worse[4]
    assert np.quantile(cosine(rows, worse), 0.01) < 0.9999
    assert cosine(rows, worse)[3] == 0
    assert cosine(rows, rows * np.nan).max() == -1


def test_a_nearly_constant_output_is_stopped_even_where_cosines_look_fine() -> None:
    figures, model = judged(MATRIX)
    flat = msgspec.structs.replace(figures, spread=figures.spread_fp32 / 10)
    assert any("nearly constant" in sentence for sentence in failures(flat, GATE, {"m": model}))


def test_a_slow_quantized_model_is_stopped() -> None:
    figures, model = judged(MATRIX)
    slow = msgspec.structs.replace(figures, speedup_vs_fp32=0.8)
    assert any("speedup_vs_fp32" in sentence for sentence in failures(slow, Gate(), {"m": model}))
    unmeasured = msgspec.structs.replace(figures, speedup_vs_fp32=None)
    assert failures(unmeasured, Gate(), {"m": model}) == []


@pytest.mark.parametrize(("versions", "says"), [({"opset": 21, "ir": 10}, "opset"), ({"opset": 20, "ir": 11}, "IR")])
def test_a_model_that_the_oldest_runtime_cannot_load_is_stopped(versions: dict[str, int], says: str) -> None:
    model = linear(MATRIX, **versions)
    assert any(says in sentence for sentence in failures(judged(MATRIX)[0], GATE, {"models/image.onnx": model}))


def test_the_layer_to_keep_in_floating_point_is_named() -> None:
    figures = msgspec.structs.replace(
        judged(MATRIX)[0], failures=["cosine_mean expected at least 0.995, got 0.9"],
        sensitivity={"head": 0.001, "blocks.3.depthwise": 0.04},
    )  # fmt: skip
    with pytest.raises(GateError, match=r"blocks\.3\.depthwise"):
        pass_or_raise(figures, "cpu-u8")


@pytest.mark.parametrize("worst", [0.9, float("nan")])
def test_what_no_runtime_would_open_is_stopped(worst: float) -> None:
    parity.open_or_raise(0.98, "cpu-u8")
    with pytest.raises(GateError, match=r"golden frames of cpu-u8: expected a cosine of at least 0\.97"):
        parity.open_or_raise(worst, "cpu-u8")


def test_recall_counts_own_memories_only() -> None:
    memories = np.float32(np.eye(12))
    queries = memories[[0, 1, 2, 3]]
    assert recall(memories, queries, np.array([0, 1, 2, 3])) == {"1": 1.0, "10": 1.0}
    assert recall(memories, queries, np.array([1, 1, 2, 3]))["1"] == 0.75


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf], ids=["constant", "nan", "infinite"])
def test_who_cannot_tell_memories_apart_finds_nothing(value: float) -> None:
    same = np.full((50, 4), value, np.float32)
    assert recall(same, same, np.arange(50)) == {"1": 0.0, "10": 0.0}
    assert recall(same[:5], same[:5], np.arange(5))["1"] == 0.0


def test_a_memory_that_is_not_finite_is_in_nobodys_way() -> None:
    memories = np.float32(np.eye(12))
    memories[3] = np.nan
    queries = np.float32(np.eye(12))
    assert recall(memories, queries, np.arange(12))["1"] == pytest.approx(11 / 12)


def test_the_report_can_be_read_and_looked_at() -> None:
    figures, _ = judged(MATRIX)
    figures = msgspec.structs.replace(figures, sensitivity={"head": 0.01})
    files = report_files("cpu-u8", figures, GATE, {"cpu": "test"})
    assert set(files) == {"parity/cpu-u8.json", "parity/cpu-u8.md", "parity/cpu-u8.png"}
    assert json.loads(files["parity/cpu-u8.json"])["gate"]["cosine_mean"] == 0.995
    assert b"every limit is met" in files["parity/cpu-u8.md"]
    assert files["parity/cpu-u8.png"][:4] == b"\x89PNG"
    assert files == report_files("cpu-u8", figures, GATE, {"cpu": "test"})


def test_the_session_that_ships_is_the_one_that_is_judged() -> None:
    """The options reach the session, and a stand-in's speed is not reported."""
    figures, _ = judged(MATRIX)
    assert figures.session == "onnxruntime all"
    spec = Model(file="m", backend="onnxruntime", graph_optimization="disable")
    stand_in = Embedder(linear(MATRIX), spec, SHAPE)
    found = judge(
        pictures(), original=ORIGINAL, shipped=stand_in, reference=ORIGINAL,
        texts=(np.float32(np.eye(2)),) * 2, rules=RULES, timed=False,
    )  # fmt: skip
    assert found.session == "onnxruntime disable"
    assert found.speedup_vs_fp32 is None
    assert parity.paired_ms({"a": ORIGINAL}, pictures().memories[:2]).keys() == {"a"}
    assert onnx.load_model_from_string(stand_in.model).ir_version == 8
