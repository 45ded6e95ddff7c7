"""Easy-VQA: questions about one coloured shape in a 64 × 64 picture, with its author's split into train and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import fetch

PACKAGE = "easy-vqa"
"""Its name in ``packages.toml``."""

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        image: the PNG file.
        text: ``what color is the shape?``
        answer: one of ``answers()``.
    """

    image: Path
    text: str
    answer: str


def answers() -> tuple[str, ...]:
    """All 13 answers in the package's order (fetches the package)."""
    return tuple((_folder() / "answers.txt").read_text(encoding="utf-8").split())


def questions(part: Part) -> tuple[Question, ...]:
    """The official part in the package's order; nothing may learn from ``test`` (fetches the package).

    Raises:
        DataError: the list of questions is not what it was, or a picture is missing.
    """
    folder = _folder() / part
    path = folder / "questions.json"
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[tuple[str, str, int]])
    except (OSError, msgspec.MsgspecError) as error:
        raise _changed(path, "rows of question, answer and picture number", str(error)) from None
    there = {picture.stem for picture in (folder / "images").glob("*.png")}
    missing = sorted({number for _, _, number in rows if str(number) not in there})
    if missing:
        raise _changed(folder / "images", f"{missing[0]}.png", f"{len(missing)} pictures fewer")
    return tuple(Question(folder / f"images/{number}.png", text, answer) for text, answer, number in rows)


def files() -> list[Path]:
    """All pictures and lists of questions (fetches the package)."""
    return sorted(path for path in _folder().rglob("*") if path.suffix in (".png", ".json", ".txt"))


def _folder() -> Path:
    return fetch(PACKAGE) / "easy_vqa/data"


def _changed(path: Path, expected: str, got: str) -> DataError:
    return DataError(f"easy-VQA's '{path.name}'", expected=expected, got=got, do="fetch the package again")
