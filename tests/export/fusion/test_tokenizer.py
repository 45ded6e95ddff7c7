"""Word pieces: any text can be written, numbers are rows of digits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edge_ravlm.export.fusion.tokenizer import fit_tokenizer
from edge_ravlm.runtime.fusion.layout import SPECIAL

pytestmark = pytest.mark.export

TOKENIZER = fit_tokenizer(
    ["the gate is open", "the sign means no stopping", "it is 120 cm wide", "0 1 2 3 4 5 6 7 8 9"] * 3, 400
)


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=30))
def test_any_word_comes_back(word: str):
    normal = TOKENIZER.normalizer.normalize_str(word)
    ids = TOKENIZER.encode(f"the {word}", add_special_tokens=False).ids
    assert TOKENIZER.decode(ids) == f"the {normal}".replace("▁", " ")


def test_special_tokens_come_first():
    assert [TOKENIZER.id_to_token(number) for number in range(len(SPECIAL))] == list(SPECIAL)


def test_digits_stand_alone():
    assert TOKENIZER.encode("9071", add_special_tokens=False).tokens[-4:] == ["9", "0", "7", "1"]


def test_it_is_the_same_after_saving():
    again = Tokenizer.from_str(TOKENIZER.to_str())
    assert again.encode("a tunnel, 5 m").ids == TOKENIZER.encode("a tunnel, 5 m").ids
