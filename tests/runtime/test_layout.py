"""What the decoder reads: blocks, what is spelt alike, where copies go on, and what ties two entries together."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from edge_ravlm.runtime.fusion.layout import (
    ASKED,
    ASKED_FOUND,
    EMPTY,
    FEATURES,
    LONGEST_BLOCK,
    PAD,
    SEPARATOR,
    SPECIAL,
    TOLD,
    TOLD_ASKED,
    Passage,
    continues,
    lay_out,
)

WORDS = ["who", "owns", "this", "bike", "the", "Owner", "is", "Karla", "red", "R4", "means", "no", "entry", "sign"]
DIM = 4


@pytest.fixture
def tokenizer() -> Tokenizer:
    vocab = {word: row for row, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[-1]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def feature(prompt_features: np.ndarray, name: str) -> list[float]:
    return [round(float(value), 3) for value in prompt_features[1:, FEATURES.index(name)]]


def test_the_first_block_is_the_question_alone(tokenizer: Tokenizer):
    prompt = lay_out(tokenizer, "who owns this bike", [Passage("the bike is red")], DIM)
    assert prompt.tokens.shape == prompt.roles.shape == (2, 9)
    assert prompt.roles[0].tolist() == [ASKED] * 4 + [EMPTY] * 5
    assert (prompt.tokens[0, 4:] == PAD).all()
    assert prompt.tokens[1, 4] == SEPARATOR


def test_words_of_question_and_entry_that_are_spelt_alike_are_marked(tokenizer: Tokenizer):
    prompt = lay_out(tokenizer, "the OWNER is who", [Passage("Owner Karla")], DIM)
    assert prompt.roles[1].tolist() == [ASKED, ASKED_FOUND, ASKED, ASKED, ASKED, TOLD_ASKED, TOLD]


def test_a_place_belongs_to_its_entry(tokenizer: Tokenizer):
    prompt = lay_out(tokenizer, "who", [Passage("Karla"), Passage("red bike")], DIM)
    owners = {
        int(token): place // prompt.tokens.shape[1] - 1 for place, token in enumerate(prompt.source) if token != PAD
    }
    assert owners[tokenizer.token_to_id("Karla")] == 0
    assert owners[tokenizer.token_to_id("bike")] == 1


def test_nothing_retrieved_is_an_empty_entry(tokenizer: Tokenizer):
    prompt = lay_out(tokenizer, "who owns this", [], DIM)
    assert len(prompt.tokens) == 2
    assert not prompt.features[:, FEATURES.index("pictured")].any()


def test_long_entries_are_cut(tokenizer: Tokenizer):
    assert lay_out(tokenizer, "who " * 99, [Passage("red " * 500)], DIM).tokens.shape[1] == LONGEST_BLOCK


def test_the_nearest_picture_knows_by_how_much(tokenizer: Tokenizer):
    passages = [Passage("red", 0.9, np.ones(DIM, np.float32)), Passage("bike", 0.7), Passage("no", text_cosine=0.5)]
    prompt = lay_out(tokenizer, "who", passages, DIM)
    assert feature(prompt.features, "pictured") == [1, 1, 0]
    assert feature(prompt.features, "image_lead") == [0.2, -0.2, 0]
    assert feature(prompt.features, "nearest_image") == [1, 0, 0]
    assert feature(prompt.features, "nearest_text") == [0, 0, 1]
    assert prompt.products.tolist() == [[0] * DIM, [1] * DIM, [0] * DIM, [0] * DIM]


def test_what_the_second_hop_brings_is_marked(tokenizer: Tokenizer):
    passages = [Passage("sign R4", 0.9), Passage("R4 means no entry", second_hop=True, overlap=0.8)]
    prompt = lay_out(tokenizer, "who", passages, DIM)
    assert feature(prompt.features, "second_hop") == [0, 1]
    assert feature(prompt.features, "overlap") == [0, 0.8]
    assert feature(prompt.features, "most_overlap") == [0, 1]


def test_a_copy_goes_on_where_the_last_words_stand():
    source = np.array([7, 8, 9, 7, 8, 6, PAD], np.int64)
    found = continues(source, np.array([[9, 7], [7, 8], [PAD, 5]], np.int64))
    assert found[0, :, 0].tolist() == [0, 1, 0, 0, 1, 0, 0], "after each 7"
    assert found[0, :, 1].tolist() == [0, 0, 0, 0, 1, 0, 0], "after 9 7"
    assert found[1, :, 1].tolist() == [0, 0, 1, 0, 0, 1, 0], "after 7 8"
    assert not found[2].any()


def test_tokens_know_whether_they_go_on_with_a_word(tokenizer):
    pieces = models.WordPiece(
        {word: row for row, word in enumerate([*SPECIAL, "bike", "##s", "R", "##4", "-"])}, unk_token="[UNK]"
    )
    made = Tokenizer(pieces)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    prompt = lay_out(made, "bikes", [Passage("R4-R4 bike")], DIM)
    assert prompt.within[0, :2].tolist() == [False, True]
    assert prompt.within[1].tolist() == [False, True, False, False, True, False, False, True, False]


def characters(text: str) -> Tokenizer:
    """A token for each character of ASCII, several bytes for any other."""
    vocab = [
        *SPECIAL,
        *dict.fromkeys(one for one in text if one.isascii()),
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    return Tokenizer(models.BPE({token: row for row, token in enumerate(vocab)}, [], byte_fallback=True))


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("200.5 cm", "2 c"),
        ("12.3.2001, 1,299", "1, 1"),
        ("10:30 3/4 7-8.", "1 3 7."),
        ("K-7 1. a.b", "K-7 1. a.b"),
        ("ein Stück £5", "e S £5"),
        ("Dr. Smith, Mrs. Ho.", "D , M ."),
        ("St. Mary, No. 5.", "S , N ."),
        ("9 a.m. on 3 p.m", "9 a o 3 p"),
        ("a Dr. is No. one", "a D . i N . o"),
    ],
)
def test_a_number_with_its_signs_a_name_with_its_title_and_a_sign_of_several_bytes_are_one(text: str, starts: str):
    made = characters(text)
    prompt = lay_out(made, "", [Passage(text)], DIM)
    offsets = made.encode(text).offsets
    begun = "".join(text[at] for (at, _), within in zip(offsets, prompt.within[1, 1:], strict=True) if not within)
    assert begun.replace(" ", "") == starts.replace(" ", "")


def test_an_entry_is_cut_between_two_words(tokenizer: Tokenizer):
    text = "red " * 20 + "12995 cm"
    made = characters(text)
    read = [lay_out(made, "r" * asked, [Passage(text)], DIM) for asked in range(6, 14)]
    told = [made.decode(list(prompt.source[prompt.told])).replace(" ", "") for prompt in read]
    assert {text.removeprefix("red" * 20) for text in told} == {"12995cm", "12995", ""}
    endless = lay_out(made, "", [Passage("9" * 500)], DIM)
    assert endless.tokens.shape[1] == LONGEST_BLOCK, "a single word is cut all the same"


def test_what_the_picture_brought_and_what_words_brought_are_doubted_each_for_itself(tokenizer):
    passages = [
        Passage("red bike", 0.9),
        Passage("no entry", 0.4),
        Passage("sign R4", 0.1, shared=1.7),
        Passage("no sign", 0.2, shared=1.5),
        Passage("the sign", shared=0.0),
        Passage("sign means no entry", 0.2, second_hop=True),
        Passage("Owner is Karla"),
    ]
    assert lay_out(tokenizer, "who", passages, DIM).unlikeness == pytest.approx([0, 0, 0.5, 0, 0.2, 1, 0, 0])
    assert not lay_out(tokenizer, "who", [], DIM).unlikeness.any()
