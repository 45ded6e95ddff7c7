"""Easy-VQA's records, from a package of three questions and from the real one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.export.data import easy_vqa as module
from edge_ravlm.export.data.easy_vqa import Question, answers, questions
from edge_ravlm.export.data.packages import cached

pytestmark = pytest.mark.export


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "easy-vqa/easy_vqa/data"
    for part, rows in (
        ("train", [["what color?", "blue", 0], ["a circle?", "no", 0]]),
        ("test", [["a circle?", "yes", 7]]),
    ):
        (folder / part / "images").mkdir(parents=True)
        (folder / part / "questions.json").write_bytes(msgspec.json.encode(rows))
        (folder / part / f"images/{rows[0][2]}.png").touch()
    (folder / "answers.txt").write_text("blue\nyes\nno\n")
    monkeypatch.setattr(module, "fetch", lambda name: tmp_path / name)
    return folder


def test_questions_come_with_their_picture_and_answer(data: Path) -> None:
    image = data / "train/images/0.png"
    assert questions("train") == (Question(image, "what color?", "blue"), Question(image, "a circle?", "no"))
    assert questions("test") == (Question(data / "test/images/7.png", "a circle?", "yes"),)
    assert answers() == ("blue", "yes", "no")


def test_what_is_missing_is_named(data: Path) -> None:
    (data / "test/images/7.png").unlink()
    with pytest.raises(DataError, match=r"easy-VQA's 'images': expected 7\.png"):
        questions("test")
    (data / "train/questions.json").write_text('[["what?", "blue"]]')
    with pytest.raises(DataError, match="expected rows of question, answer and picture number"):
        questions("train")


@pytest.mark.data
def test_the_official_split() -> None:
    if cached(module.PACKAGE) is None:
        pytest.skip("needs easy-vqa, which `make data` fetches")
    train, test = questions("train"), questions("test")
    assert (len(train), len(test), len(answers())) == (38_575, 9_673, 13)
    assert {question.answer for question in (*train, *test)} == set(answers())
    assert not {question.image for question in train} & {question.image for question in test}
