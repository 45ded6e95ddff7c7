"""The contact sheet: every example has its texts under it, and wrong calls get a sentence."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.export.data import sheet as module
from edge_ravlm.export.data.sheet import CELL, Example, main, sheet

pytestmark = pytest.mark.export


def example(tone: int, *texts: str, held_out: bool = False) -> Example:
    return Example(np.full((64, 64, 3), tone, np.uint8), texts, "held out" if held_out else "train", held_out)


def test_a_sheet_shows_pictures_and_texts() -> None:
    drawn = sheet(
        [example(90, "a lamp"), example(120, "50 € bill", "a long text " * 30, held_out=True), example(10, "x")], 2
    )
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 2
    assert (drawn[4 : 4 + CELL, 4 : 4 + CELL] == 90).all()
    assert (drawn[4 : 4 + CELL, width + 4 : width + 4 + CELL] == 120).all()
    texts = drawn[CELL + 24 : height]
    assert (texts[:, :width] < 128).any()
    assert (texts[:, width:] < 128).sum() > 5 * (texts[:, :width] < 128).sum()
    marks = drawn[CELL + 6, [6, width + 6]].astype(int)
    assert marks[0].argmax() == 1, "green: train"
    assert marks[1].argmax() == 2, "red: held out"
    assert (drawn[height:, width:] == 255).all(), "the rest is paper"


def test_the_command_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "examples", lambda *arguments: asked.append(arguments) or [example(90, "a lamp")])
    path = tmp_path / "new/sheet.png"
    assert main(["home", "-o", str(path), "--each", "3"]) == 0
    assert asked == [("home", 3, 0)]
    assert cv2.imread(str(path)) is not None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["cities", "-o", "x.png"], 2, "data set 'cities': expected traffic, home or easy-vqa"),
        (["home", "-o", "x.txt"], 2, "sheet 'x.txt': expected a .png or .jpg file"),
        (["home", "-o", "x.png", "--each", "0"], 2, "one example or more"),
        (["home"], 2, "output"),
    ],
)
def test_wrong_calls_get_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(arguments) == code
    got = capsys.readouterr()
    assert got.out == ""
    assert said.lower() in got.err.lower()
    assert got.err.count("\n") == 1


def test_a_place_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "examples", lambda *_: [example(90, "a lamp")])
    (tmp_path / "file").touch()
    assert main(["home", "-o", str(tmp_path / "file/sheet.png")]) == 1
    assert "expected a file that can be written" in capsys.readouterr().err
