"""Names, codes and numbers are found by what they are, not only by what they are like."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest

from edge_ravlm.errors import StorageError
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, Where, words
from edge_ravlm.runtime.memory.entries import Ids
from edge_ravlm.runtime.memory.store import Store
from edge_ravlm.runtime.memory.words import overlaps, rarities, words_of

SAME = np.ones(8, np.float32)


def tell(memory: Memory, *texts: str, camera: str = "yard") -> list[int]:
    """Entries whose vectors are all alike: only words tell them apart."""
    return memory.add([NewEntry(text, vectors={"text": SAME}, tags={"camera": camera}) for text in texts])


def test_what_was_added_is_found_by_its_words_at_once_and_not_once_it_is_removed(memory: Memory) -> None:
    first, second, third = tell(memory, "cabinet C-5679 is oak", "Cabinet C-4444", "Straße nach Ørsta, 5679")
    assert memory.saying("where is c-5679?") == [first, second, third], "'c' is a word too"
    assert memory.saying("4444") == [second]
    assert memory.saying("ØRSTA") == [third]
    assert memory.saying("no such thing") == memory.saying("?!") == []
    assert memory.remove(second) == 1
    assert memory.saying("4444") == []
    assert memory.verify() == []


def test_other_processes_words_are_found(memory: Memory, folder: Path, spaces: dict[str, Space]) -> None:
    with Memory.open(folder, spaces) as other:
        (id_,) = tell(other, "the spare key is with Ms Quill")
        assert memory.saying("quill") == [id_]
    with Memory.open(folder, spaces, read_only=True) as reader:
        assert reader.saying("quill") == [id_]


def test_a_word_that_many_say_is_not_rare_also_where_only_some_are_asked(memory: Memory) -> None:
    many = tell(memory, *(f"gate {row}" for row in range(20)))
    here = tell(memory, "gate of the garden", camera="garden")
    assert memory.saying("gate", most=20) == []
    assert memory.saying("gate", most=21) == [*many, *here]
    assert memory.saying("gate", Where(tags={"camera": "garden"}), most=20) == here
    assert memory.saying("gate", Where(tags={"camera": "garden"}), most=0) == []
    assert memory.saying("gate 7", most=5) == [many[7]]


@pytest.mark.parametrize(
    "text", ['say "hello" OR NOT (near*', "a'b; DROP TABLE entries", "x^2 AND", "ー长い x_y ²", "\0"]
)
def test_no_text_is_taken_for_a_command(memory: Memory, text: str) -> None:
    (id_,) = tell(memory, text)
    assert memory.saying(text) == ([id_] if words_of(text) else [])
    assert [hit.id for hit in memory.search("text", SAME, 3, words=text)] == [id_]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("café", "CAFÉ"),
        ("ång", "Ång"),
        ("İstanbul", "istanbul'a".replace("i", "İ", 1)),
        ("ΟΔΟΣ Ά", "οδος"),
        ("ゴミ箱", "ゴミ箱"),
        ("한국", "한국"),
        ("x̂1 y", "x̂1"),
        ("क़लम", "क़लम"),
        ("豈", "豈"),
        ("ᏣᎳᎩ", "ᏣᎳᎩ"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD", ""])
def test_however_accents_and_capitals_are_written_a_word_is_found(
    memory: Memory, said: str, asked: str, form: Literal["NFC", "NFD", ""]
) -> None:
    """File names of some systems, which are imported as texts, spell accents as letters of their own."""
    (id_,) = tell(memory, normalize(form, said) if form else said)
    tell(memory, *(f"another thing {row}" for row in range(30)))
    assert memory.saying(asked) == [id_]
    best, *others = memory.search("text", SAME, 5, words=asked)
    assert best.id == id_
    assert best.shared > max(hit.shared for hit in others)


def test_rare_words_decide_where_vectors_do_not(memory: Memory) -> None:
    ids = tell(memory, *(f"it is listed as AB {row}" for row in range(200)))
    for row in (0, 117, 199):
        best, *others = memory.search("text", SAME, 3, words=f"what is AB {row}?")
        assert best.id == ids[row]
        assert best.score == pytest.approx(1, abs=1e-3), "scores stay cosines"
        assert best.shared > 0.9
        assert all(hit.shared < 0.1 for hit in others)
    assert all(hit.shared == 0 for hit in memory.search("text", SAME, 3))


def test_few_words_of_a_page_are_looked_up_and_no_longer_lists_than_a_filter_needs(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, saying = list[tuple[str, int]](), Store.saying

    def noted(store: Store, word: str, most: int) -> Ids:
        looked_up.append((word, most))
        return saying(store, word, most)

    monkeypatch.setattr(Store, "saying", noted)
    words = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(400)]
    (page,) = tell(memory, " ".join([*words, "see K-17"]), camera="hall")
    (id_,) = tell(memory, "box 17")
    assert memory.saying(f"{' '.join(words)} 17 metropolitan") == [page, id_]
    assert {"17", "metropolitan"} < {word for word, _ in looked_up}
    assert len(looked_up) <= 64
    looked_up.clear()
    assert memory.saying("17", Where(tags={"camera": "yard"}), most=10) == [id_]
    assert looked_up == [("17", 41)], "half of the memory is asked about"


def test_a_filter_holds_for_words_too(memory: Memory) -> None:
    tell(memory, "the key is in box 17", camera="yard")
    (there,) = tell(memory, "the bench is green", camera="hall")
    hits = memory.search("text", SAME, 5, Where(tags={"camera": "hall"}), words="what is in box 17?")
    assert [hit.id for hit in hits] == [there]
    assert memory.search("text", SAME, 5, Where(tags={"camera": "none"}), words="box 17") == []


def test_entries_without_the_field_are_no_hits(memory: Memory) -> None:
    memory.add([NewEntry("box 17", vectors={"image": np.ones(16)})])
    (id_,) = tell(memory, "another thing")
    assert [hit.id for hit in memory.search("text", SAME, 5, words="box 17")] == [id_]


def test_what_entries_say_comes_in_the_order_of_the_ids(memory: Memory) -> None:
    first, second = tell(memory, "one", "two")
    assert memory.texts([second, 99, first]) == ["two", "", "one"]


def test_rare_words_tie_two_texts_together() -> None:
    texts = ["sign R4 means no entry", "sign R7 means no entry", "sign B1 means a school", "the bin is red"]
    shares = overlaps("this sign: r7", texts)
    assert int(np.argmax(shares)) == 1
    assert shares[1] > 2 * max(shares[0], shares[2], shares[3])
    assert overlaps("!", texts) == [0.0] * 4
    assert overlaps("red", []) == rarities("red", []) == []


def test_one_code_weighs_more_than_a_phrase_that_a_few_share() -> None:
    said = "it is numbered S338"
    texts = ["sign S338 means halt", *(f"it is numbered {row}" for row in range(5)), *["the bin is red"] * 40]
    for found in (overlaps(said, texts), rarities(said, texts)):
        assert int(np.argmax(found)) == 0


def test_a_word_counts_the_more_the_fewer_of_many_texts_have_it() -> None:
    assert rarities("S338", ["sign S338", *["the bin is red"] * 127]) == pytest.approx([1, *[0] * 127])
    assert rarities("S338", ["sign S338", "the bin is red"])[0] < 0.01, "among two texts no word is rare"
    fewer, more = (rarities("S338", ["sign S338"] * n + ["the bin is red"] * (128 - n))[0] for n in (2, 20))
    assert 1 > fewer > 2 * more > 0


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("张伟在哪里", ["王芳的电话是 12345", "张伟的办公室在三楼", "垃圾桶是绿色的", "猫在沙发上"]),
        ("电话号码是多少", ["张伟的办公室在三楼", "王芳的电话是 12345", "垃圾桶是绿色的", "猫在沙发上"]),
        (
            "猫はどこにいますか",
            ["門は閉まっています", "猫はソファの上にいます", "田中さんの部屋は三階です", "ゴミ箱は緑色です"],
        ),
    ],
)
def test_words_of_a_script_without_spaces_are_found_within_sentences(
    memory: Memory, question: str, texts: list[str]
) -> None:
    ids = memory.add([NewEntry(text, vectors={"image": np.ones(16)}) for text in texts])
    assert memory.search("image", np.ones(16), 1, words=question)[0].id == ids[1]


def test_an_sqlite_without_full_text_search_is_named(
    folder: Path, spaces: dict[str, Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MADE", ("CREATE VIRTUAL TABLE words USING fts99(text)",))
    with pytest.raises(StorageError, match="expected an SQLite with full-text search"):
        Memory.open(folder, spaces)
