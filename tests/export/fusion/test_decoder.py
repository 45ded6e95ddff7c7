"""The decoder: distributions, the cache, what is padded, its graphs, and that it learns to read what it never saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from edge_ravlm.errors import DataError
from edge_ravlm.export.fusion.batches import Batch, collated
from edge_ravlm.export.fusion.episodes import Episodes, Shelf, Told
from edge_ravlm.export.fusion.graphs import prefill_graph, step_graph, with_small_weights
from edge_ravlm.export.fusion.making import agreement, threshold
from edge_ravlm.export.fusion.model import FusionDecoder, Shape, spread
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.fusion.training import Lesson, judge, predicted, train
from edge_ravlm.runtime.fusion.layout import FEATURES, TOLD
from tests.export.fusion.conftest import CELLS, CHANNELS, DIM, texts

pytestmark = pytest.mark.export


def made(tokenizer: Tokenizer, **sizes: Any) -> FusionDecoder:
    torch.manual_seed(0)
    vocab = tokenizer.get_vocab_size()
    decoder = FusionDecoder(Shape(vocab, width=48, heads=4, dim=DIM, channels=CHANNELS, **sizes)).eval()
    for part in decoder.parameters():
        if not part.any():  # what begins as nothing would hide a mistake
            torch.nn.init.normal_(part, std=0.2)
    return decoder


def beside(decoder: FusionDecoder, tokens: list[int]) -> torch.Tensor:
    """Pointers to the tokens of one block."""
    shape = (1, 2, len(tokens))
    block = torch.tensor(tokens).expand(shape)
    nothing = torch.zeros(1, 2, len(FEATURES)), torch.zeros(1, 2, DIM), torch.zeros(1, CELLS, CHANNELS)
    return decoder.read(block, torch.full(shape, TOLD), *nothing).pointers[0, len(tokens) : 2 * len(tokens)]


@torch.no_grad()
def test_the_same_word_reads_otherwise_beside_another_one(tokenizer: Tokenizer):
    decoder = made(tokenizer)
    for reader in decoder.readers:
        torch.nn.init.zeros_(reader.attention.out.weight)  # without attention, neighbours are all that differs
    one, other = beside(decoder, [7, 8, 9, 10, 11, 12, 13]), beside(decoder, [7, 20, 9, 10, 11, 12, 13])
    same = torch.isclose(one, other, atol=1e-6).all(1).tolist()
    assert same == [False, False, False, False, True, True, True], "two on either side"


@torch.no_grad()
def test_attention_knows_how_far_apart_words_are(tokenizer: Tokenizer):
    decoder = made(tokenizer)
    torch.nn.init.zeros_(decoder.places.weight)
    torch.nn.init.zeros_(decoder.beside.out.weight)
    near, far = beside(decoder, [7, 8, 9, 9, 9, 9, 9]), beside(decoder, [7, 9, 9, 9, 9, 8, 9])
    assert not torch.allclose(near[0], far[0], atol=1e-4)
    for reader in decoder.readers:
        torch.nn.init.zeros_(reader.distances.weight)
    near, far = beside(decoder, [7, 8, 9, 9, 9, 9, 9]), beside(decoder, [7, 9, 9, 9, 9, 8, 9])
    assert torch.allclose(near[0], far[0], atol=1e-5), "nothing else tells them apart"


@pytest.fixture(scope="module")
def batch(episodes: Episodes, tokenizer: Tokenizer) -> Batch:
    drawn = [episodes.draw(np.random.default_rng(seed)) for seed in range(12)]
    return collated(drawn, tokenizer, texts, DIM, 24)


@pytest.mark.parametrize("kind", ["attention", "concat", "add"])
@torch.no_grad()
def test_words_and_copies_are_one_distribution(tokenizer: Tokenizer, batch: Batch, kind: Any):
    words, copies, _ = predicted(made(tokenizer, kind=kind), batch)
    assert torch.allclose(spread(words, copies, batch.source).sum(2), torch.ones(batch.last.shape), atol=1e-5)
    assert (batch.places >= batch.tokens[0].numel()).sum() == CELLS * len(batch.kinds)
    assert not copies[batch.source[:, None].expand_as(copies) == 0].any(), "cells are no words, nor is padding"


@pytest.mark.parametrize("kind", ["attention", "concat", "add"])
@torch.no_grad()
def test_each_kind_of_fusion_sees_the_picture(tokenizer: Tokenizer, batch: Batch, kind: Any):
    decoder = made(tokenizer, kind=kind)
    other = replace(batch, cells=batch.cells.flip(2))
    assert not torch.allclose(predicted(decoder, batch)[0], predicted(decoder, other)[0], atol=1e-4)


@torch.no_grad()
def test_word_by_word_gives_what_all_at_once_gives(tokenizer: Tokenizer, batch: Batch):
    decoder = made(tokenizer)
    words, copies, read = predicted(decoder, batch)
    keys = values = decoder.nothing(len(batch.kinds))
    for place in range(batch.last.shape[1]):
        at = slice(place, place + 1)
        said, copied, keys, values = decoder.write(
            batch.last[:, at], torch.tensor([place]), keys, values, read, batch.continues[:, at]
        )
        assert torch.allclose(said[:, 0], words[:, place], atol=1e-5)
        assert torch.allclose(copied[:, 0], copies[:, place], atol=1e-5)


@torch.no_grad()
def test_a_question_reads_the_same_alone_and_in_a_batch(tokenizer: Tokenizer, episodes: Episodes, batch: Batch):
    decoder = made(tokenizer)
    alone = collated([episodes.draw(np.random.default_rng(0))], tokenizer, texts, DIM, 24)
    words, _, _ = predicted(decoder, alone)
    together, _, _ = predicted(decoder, batch)
    assert torch.allclose(words[0], together[0, : words.shape[1]], atol=1e-5)


@torch.no_grad()
def test_what_a_batch_leaves_out_is_empty(tokenizer: Tokenizer, batch: Batch):
    decoder = made(tokenizer)
    words, copies, _ = predicted(decoder, batch)
    read = decoder.read(batch.tokens, batch.roles, batch.features, batch.products, batch.cells)
    nothing, position = decoder.nothing(len(batch.kinds)), torch.tensor([0])
    everywhere = torch.from_numpy(np.stack([batch.everywhere(row, 0) for row in range(len(batch.kinds))]))
    said, copied, _, _ = decoder.write(batch.last[:, :1], position, nothing, nothing, read, everywhere)
    assert torch.allclose(said[:, 0], words[:, 0], atol=1e-5)
    source = torch.nn.functional.pad(batch.tokens.flatten(1), (0, CELLS))
    assert torch.allclose(spread(said, copied, source)[:, 0], spread(words, copies, batch.source)[:, 0], atol=1e-5)


@torch.no_grad()
def test_the_graphs_do_what_the_model_does(tokenizer: Tokenizer, batch: Batch):
    decoder = made(tokenizer)
    prefill, step = prefill_graph(decoder, CELLS), step_graph(decoder, CELLS)
    assert agreement(decoder, prefill, step, [batch]) == 1.0
    names = ("tokens", "roles", "features", "products")
    feeds = {name: getattr(batch, name)[0].numpy() for name in names} | {"cells": batch.cells[:1].numpy()}
    read = decoder.read(*(getattr(batch, name)[:1] for name in names), batch.cells[:1])
    found = onnxruntime.InferenceSession(prefill.SerializeToString()).run(["keys", "pointers"], feeds)
    assert np.allclose(found[0], read.keys[:, 0].numpy(), atol=1e-4)
    assert np.allclose(found[1], read.pointers[0].numpy(), atol=1e-4)


def test_small_weights_take_a_third_of_the_space(tokenizer: Tokenizer):
    prefill = prefill_graph(made(tokenizer), CELLS)
    assert len(with_small_weights(prefill).SerializeToString()) < 0.4 * len(prefill.SerializeToString())


SETTINGS = FusionSettings(steps=150, batch=16, rate=4e-3, evaluate_every=75, longest=24)


@pytest.fixture(scope="module")
def lesson(shelf: Shelf, tokenizer: Tokenizer) -> Lesson:
    return Lesson(Episodes([shelf], texts), Episodes([shelf], texts, half="held_out"), tokenizer, texts)


def test_it_learns_to_read_words_that_it_never_saw(lesson: Lesson, tokenizer: Tokenizer, tmp_path: Path):
    decoder = train(made(tokenizer), lesson, SETTINGS, tmp_path)
    unseen = [
        collated(
            [lesson.held_out.draw(np.random.default_rng((7, seed))) for seed in range(64)], tokenizer, texts, DIM, 24
        )
    ]
    figures, before = judge(decoder, unseen), judge(made(tokenizer), unseen)
    assert before.exact < 0.05
    assert figures.exact > 0.3, "no word of an answer was trained on: it can only be copied"
    assert figures.loss < before.loss / 2


@pytest.mark.parametrize("alone", [0, 3])
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    lesson: Lesson, episodes: Episodes, tokenizer: Tokenizer, tmp_path: Path, alone: int
):
    settings = FusionSettings(steps=6, batch=4, evaluate_every=3, alone=alone)
    lesson = replace(lesson, episodes=episodes)
    whole = train(made(tokenizer), lesson, settings, tmp_path / "whole")

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made(tokenizer), lesson, settings, tmp_path / "cut", stop)
    resumed = train(made(tokenizer), lesson, settings, tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_questions_that_a_picture_answers_alone_are_learnt_beside_the_episodes(
    lesson: Lesson, shelf: Shelf, told: Told, tokenizer: Tokenizer, tmp_path: Path
):
    never = Episodes([shelf], texts, told, share_told=0.0)  # among the episodes themselves
    asked = [never.alone(np.random.default_rng(seed)) for seed in range(40)]
    exact = []
    for alone in (0, 16):
        settings = FusionSettings(steps=60, batch=8, rate=4e-3, evaluate_every=60, alone=alone)
        decoder = train(made(tokenizer), replace(lesson, episodes=never), settings, tmp_path / f"{alone}")
        exact.append(judge(decoder, [collated(asked, tokenizer, texts, DIM, 24)]).exact)
    assert exact[0] < 0.6
    assert exact[1] > 0.9


def test_a_checkpoint_of_other_settings_is_refused(lesson: Lesson, tokenizer: Tokenizer, tmp_path: Path):
    train(made(tokenizer), lesson, FusionSettings(steps=1, batch=2), tmp_path)
    with pytest.raises(DataError, match="those of another run"):
        train(made(tokenizer), lesson, FusionSettings(steps=1, batch=2, rate=1e-4), tmp_path)


def test_the_threshold_keeps_false_silences_few_and_finds_most_true_ones():
    silences = np.concatenate([np.linspace(0, 0.2, 98), [0.7, 0.9], np.linspace(0.15, 1, 50)])
    answerable = np.arange(150) < 100
    chosen = threshold(silences, answerable)
    assert (silences[answerable] >= chosen).mean() <= 0.02
    assert (silences[~answerable] >= chosen).mean() > 0.9
