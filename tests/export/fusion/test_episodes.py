"""Episodes: the answer stands where they say, and nowhere once it is removed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer

from edge_ravlm.export.data.questions import Asked
from edge_ravlm.export.fusion.bank import Bank
from edge_ravlm.export.fusion.batches import Batch, collated
from edge_ravlm.export.fusion.episodes import Episode, Episodes, Shelf, Told
from edge_ravlm.runtime.fusion.layout import END, NONE, PAD
from tests.export.fusion.conftest import DIM, texts

pytestmark = pytest.mark.export

DRAWN = 400


@pytest.fixture(scope="module")
def drawn(episodes: Episodes) -> list[Episode]:
    return [episodes.draw(np.random.default_rng(seed)) for seed in range(DRAWN)]


@pytest.fixture(scope="module")
def batch(drawn: list[Episode], tokenizer: Tokenizer) -> Batch:
    return collated(drawn, tokenizer, texts, DIM, 24)


def test_equal_seeds_draw_equal_episodes(episodes: Episodes):
    one, other = (episodes.draw(np.random.default_rng(3)) for _ in range(2))
    assert (one.question, one.answer, one.gold, one.fact) == (other.question, other.answer, other.gold, other.fact)
    assert [passage.text for passage in one.passages] == [passage.text for passage in other.passages]


def test_every_kind_of_episode_comes(drawn: list[Episode]):
    wanted = {"reading", "removed", "silent", "code", "one hop", "two hops", "unexplained", "picture"}
    assert wanted <= set(Counter(episode.kind for episode in drawn))


def test_the_right_entry_says_the_answer(drawn: list[Episode]):
    for episode in drawn:
        if episode.gold is not None:
            text = episode.passages[episode.gold].text.casefold()
            assert episode.answer is not None
            assert episode.fact.casefold() in text
            assert episode.answer.casefold() in episode.fact.casefold()


def test_what_was_removed_is_not_told(shelf: Shelf, episodes: Episodes):
    for seed in range(100):
        near = episodes._near(shelf, 2, np.random.default_rng(seed), True)
        assert 2 not in {*near.rows, *near.others}
        assert not set(near.rows) & set(near.others)


def test_questions_without_a_memory_are_mostly_for_a_yes_or_no(shelf: Shelf, told: Told):
    both = replace(told, questions=[*told.questions, ("is this red?", "yes", 0), ("is this red?", "no", 1)])
    asked = [Episodes([shelf], texts, both).alone(np.random.default_rng(seed)) for seed in range(300)]
    assert {(one.question, one.answer) for one in asked} == {
        (question, answer) for question, answer, _ in both.questions
    }
    assert not any(one.passages for one in asked)
    assert 0.6 < np.mean([one.answer in ("yes", "no") for one in asked]) < 0.8


def test_pictures_are_mostly_seen_less_surely_and_taken_for_what_looks_like_them(shelf: Shelf, episodes: Episodes):
    nears = [episodes._near(shelf, 2, np.random.default_rng(seed), False) for seed in range(300)]
    own, clear = shelf.bank.asked[2].astype(np.float32), 0
    for near in nears:
        likeness = float((own @ near.query).max())
        assert np.linalg.norm(near.query) == pytest.approx(1, abs=1e-3)
        assert likeness > 0.5
        clear += likeness > 0.999
    assert 0.2 < clear / len(nears) < 0.4
    first = [near.rows[0] == 2 for near in nears if 2 in near.rows]
    assert 0.8 < np.mean(first) <= 1


def test_a_memory_holds_only_what_may_be_remembered_and_what_is_asked_about(bank: Bank):
    shelf = Shelf(bank, 1.0, np.array([1]), np.array([0, 3, 5]))
    episodes, seen = Episodes([shelf], texts), set[int]()
    for seed in range(100):
        near = episodes._near(shelf, 1, np.random.default_rng(seed), False)
        seen |= {*near.rows, *near.others}
    assert seen == {0, 1, 3, 5}


def test_what_the_words_bring_is_nearest_to_the_question(shelf: Shelf, episodes: Episodes):
    wanted = Asked("what is it worth?", "much", "it is worth much", "price")
    for seed in range(30):
        rng = np.random.default_rng(seed)
        brought = episodes._worded(shelf.bank, list(range(8)), wanted, rng)
        assert len({row for row, _, _ in brought}) == len(brought) <= 2
        cosines = [float(texts([wanted.question])[0] @ texts([text])[0]) for _, text, _ in brought]
        assert cosines == sorted(cosines, reverse=True)


def test_the_second_hop_is_compared_with_what_the_first_one_found(drawn: list[Episode]):
    hopped = [episode for episode in drawn if episode.kind == "two hops"]
    for episode in hopped:
        assert episode.gold is not None
        assert episode.passages[episode.gold].second_hop
        assert any(p.text in episode.query and not p.second_hop for p in episode.passages)


def test_copying_from_the_right_places_gives_the_answer(drawn: list[Episode], batch: Batch, tokenizer: Tokenizer):
    copied = 0
    for row, episode in enumerate(drawn):
        wanted = [int(word) for word in batch.wanted[row] if word != PAD]
        if episode.answer is None:
            assert wanted == [NONE, END]
            continue
        assert tokenizer.decode(wanted[:-1]).strip().casefold() == episode.answer.casefold()
        places = batch.right[row].argmax(1)
        for word, place, mark in zip(wanted, places.tolist(), batch.right[row].amax(1).tolist(), strict=False):
            assert not mark or int(batch.source[row, place]) == word
            copied += int(mark)
    assert copied > DRAWN


def test_every_entry_that_answers_the_question_for_its_own_thing_is_marked(
    drawn: list[Episode], batch: Batch, tokenizer: Tokenizer
):
    length, seen = batch.tokens.shape[2], 0
    for row, episode in enumerate(drawn):
        begins = batch.places[row][batch.marks[row, :, 0] == 1].tolist()
        ends = batch.places[row][batch.marks[row, :, 1] == 1].tolist()
        owners = {place // length - 1: place for place in begins}
        for passage, said in enumerate(episode.alike):
            if said is None:
                assert passage not in owners
            elif passage in owners:
                after = [place for place in ends if place > owners[passage]]
                stop = min([*after, (passage + 2) * length])
                words = batch.tokens[row].flatten()[owners[passage] : stop].tolist()
                assert tokenizer.decode(words).strip().casefold() == said[1].casefold()
                seen += passage != episode.gold
    assert seen > DRAWN


def test_copies_go_on_after_the_word_before(drawn: list[Episode], batch: Batch):
    for row, episode in enumerate(drawn):
        if episode.gold is not None and batch.right[row, 1].any():
            place = int(batch.right[row, 1].argmax())
            assert batch.continues[row, 1, place, 0] == 1
            assert batch.right[row, 0].argmax() == place - 1
