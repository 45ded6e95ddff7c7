"""What a bundle gets of the decoder: a threshold and figures from different episodes, and graphs that were compared."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer

from edge_ravlm.export.fusion import making, training
from edge_ravlm.export.fusion.episodes import Episodes, Shelf
from edge_ravlm.export.fusion.model import FusionDecoder
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.fusion.training import Lesson, judge, predicted, train
from edge_ravlm.export.parity import Gate
from edge_ravlm.runtime.fusion.layout import NONE
from tests.export.fusion.conftest import texts

pytestmark = pytest.mark.export

SETTINGS = FusionSettings(steps=1, batch=12, width=48, heads=4, longest=24)


@pytest.fixture(scope="module")
def lesson(shelf: Shelf, tokenizer: Tokenizer) -> Lesson:
    return Lesson(Episodes([shelf], texts), Episodes([shelf], texts, half="held_out"), tokenizer, texts)


@pytest.fixture(scope="module")
def decoder(lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> FusionDecoder:
    """It has learnt a little: untrained, it is torn between words, and rounding decides."""
    settings = msgspec.structs.replace(SETTINGS, steps=40, rate=4e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_HELD_OUT_EPISODES", settings.batch)
        return train(making.fresh(settings, lesson), lesson, settings, tmp_path_factory.mktemp("decoder"))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_HELD_OUT_EPISODES", 48)


@torch.no_grad()
def test_the_threshold_is_judged_on_episodes_that_it_was_not_set_on(
    lesson: Lesson, decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def middle(silences: np.ndarray, answerable: np.ndarray) -> float:
        seen.append((silences, answerable))
        return float(np.median(silences))

    monkeypatch.setattr(making, "threshold", middle)
    made = making._made(decoder, lesson, SETTINGS)
    batches = [making.held_out_batch(lesson, SETTINGS, decoder.shape, number) for number in range(4)]

    def silences(number: int) -> tuple[np.ndarray, np.ndarray]:
        words, _, _ = predicted(decoder, batches[number])
        return words[:, 0, NONE].numpy(), (batches[number].wanted[:, 0] != NONE).numpy()

    halves = [[np.concatenate(parts) for parts in zip(*map(silences, half), strict=True)] for half in ((0, 2), (1, 3))]
    ((fitted, answerable),) = seen
    np.testing.assert_allclose(fitted, halves[0][0], rtol=1e-5)
    np.testing.assert_array_equal(answerable, halves[0][1])
    silent, answerable = halves[1][0] >= made.spec.abstain_above, halves[1][1]
    assert made.figures.false_abstention == pytest.approx(silent[answerable].mean())
    assert made.figures.false_abstention > 0.1
    assert made.figures.abstains == pytest.approx(silent[~answerable].mean())
    assert made.figures.agreement >= Gate().decoder_agreement
    assert made.figures.by_kind == judge(decoder, batches[1::2]).by_kind


def test_a_decoder_whose_shipped_graphs_are_broken_is_below_the_gate(
    lesson: Lesson, decoder: FusionDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = making.with_small_weights

    def broken(graph: onnx.ModelProto) -> onnx.ModelProto:
        graph = small(graph)
        for tensor in graph.graph.initializer:
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
        return graph

    monkeypatch.setattr(making, "with_small_weights", broken)
    assert making._made(decoder, lesson, SETTINGS).figures.agreement < Gate().decoder_agreement
