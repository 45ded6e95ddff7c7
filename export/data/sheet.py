"""A contact sheet of a data set to look at: composed examples with their texts, what is held out in another colour."""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from cyclopts import App, CycloptsError, Parameter

from edge_ravlm.console import complain, say
from edge_ravlm.errors import EdgeRavlmError, UsageError
from edge_ravlm.export.data import datasets
from edge_ravlm.export.data.datasets import Part, ThingT
from edge_ravlm.export.data.easy_vqa import Question
from edge_ravlm.files import storing
from edge_ravlm.frames import Pixels, read_image

CELL = 240
"""Pixels that a picture on the sheet is wide."""

COLUMNS = 6

_LINE, _LINES, _LETTERS = 16, 4, 38
_SEEN, _HELD_OUT, _PAPER, _INK = (90, 150, 40), (40, 60, 210), 255, (30, 30, 30)


@dataclass(frozen=True)
class Example:
    """One picture of the sheet.

    Attributes:
        picture: uint8 [h, w, 3] BGR.
        texts: lines under it.
        part: the name of the part that it is from.
        held_out: whether nothing learns from it.
    """

    picture: Pixels
    texts: tuple[str, ...]
    part: str
    held_out: bool


def examples(dataset: str, each: int = 18, seed: int = 0) -> list[Example]:
    """``each`` examples of every part of ``traffic``, ``home`` or ``easy-vqa``; fetches what is not in the cache.

    Raises:
        UsageError: there is no such data set.
        DataError: a package cannot be had.
    """
    rng = np.random.default_rng(seed)
    if dataset == "traffic":
        signs = datasets.traffic()
        parts = (("train", signs.train), ("held out: meaning", signs.held_out), ("held out: design", signs.designs))
        return [example for name, part in parts for example in _composed(part, name, each, rng)]
    if dataset == "home":
        home = datasets.home()
        parts_of_home = (("train", home.train), ("held out", home.held_out))
        return [example for name, part in parts_of_home for example in _composed(part, name, each, rng)]
    if dataset == "easy-vqa":
        asked = datasets.easy_vqa()
        parts_of_it = (("train", asked.train), ("held out: test", asked.held_out))
        return [example for name, rows in parts_of_it for example in _questions(rows, name, each, rng)]
    raise UsageError(
        f"data set '{dataset}'", expected="traffic, home or easy-vqa", got="another name", do="name one of them"
    )


def sheet(shown: Sequence[Example], columns: int = COLUMNS) -> Pixels:
    """All examples in rows, uint8 [h, w, 3] BGR."""
    cells = [_cell(example) for example in shown]
    cells += [np.full_like(cells[0], _PAPER)] * (-len(cells) % columns)
    rows = [np.hstack(cells[first : first + columns]) for first in range(0, len(cells), columns)]
    return np.asarray(np.vstack(rows), np.uint8)


def _composed(part: Part[ThingT], name: str, each: int, rng: np.random.Generator) -> list[Example]:
    chosen = rng.permutation(len(part.things))[:each]
    return [
        Example(
            part.scene(int(index), rng),
            (part.things[int(index)].sentence, *part.things[int(index)].facts),
            name,
            name != "train",
        )
        for index in chosen
    ]


def _questions(rows: Sequence[Question], name: str, each: int, rng: np.random.Generator) -> list[Example]:
    by_image: dict[Path, list[Question]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    images = list(by_image)
    return [
        Example(
            read_image(images[int(index)]).pixels,
            tuple(f"{question.text} {question.answer}" for question in by_image[images[int(index)]]),
            name,
            name != "train",
        )
        for index in rng.permutation(len(images))[:each]
    ]


def _cell(example: Example) -> Pixels:
    scale = CELL / example.picture.shape[1]
    picture = cv2.resize(
        example.picture, (CELL, CELL), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    cell: Pixels = np.full((CELL + (_LINES + 1) * _LINE + 10, CELL + 8, 3), _PAPER, np.uint8)
    cell[4 : CELL + 4, 4 : CELL + 4] = picture
    bar = CELL + 4
    colour = _HELD_OUT if example.held_out else _SEEN
    cv2.rectangle(cell, (4, bar), (CELL + 3, bar + _LINE), colour, -1)
    _write(cell, example.part, bar + 12, (255, 255, 255))
    lines = [line for text in example.texts for line in textwrap.wrap(text, _LETTERS)]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"{lines[_LINES - 1]} …"]
    for row, line in enumerate(lines, start=1):
        _write(cell, line, bar + 12 + row * _LINE, _INK)
    return cell


def _write(cell: Pixels, text: str, y: int, colour: tuple[int, int, int]) -> None:
    # OpenCV's letters are ASCII.
    plain = unicodedata.normalize("NFKD", text.replace("…", "...")).encode("ascii", "ignore").decode()
    cv2.putText(cell, plain, (8, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1, cv2.LINE_AA)


app = App(help="Draw a contact sheet of a data set.", help_flags=["--help", "-h"], version_flags=[])


@app.default
def draw(
    dataset: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    each: int = 18,
    seed: int = 0,
) -> None:
    """Examples of every part, held-out ones marked in red.

    Args:
        dataset: traffic, home or easy-vqa.
        output: the picture to write, .png or .jpg.
        each: examples of each part.
        seed: of all random choices.
    """
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg") or each < 1:
        raise UsageError(
            f"sheet '{output}'",
            expected="a .png or .jpg file and one example or more",
            got=f"'{output.suffix}' and {each}",
            do="give for instance -o sheet.png --each 12",
        )
    drawn = sheet(examples(dataset, each, seed))
    _, packed = cv2.imencode(output.suffix.lower(), drawn)
    with storing(f"sheet '{output}'", expected="a file that can be written", do="choose another"):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(packed.tobytes())
    say(f"{dataset}: {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m edge_ravlm.export.data.sheet DATASET -o FILE``; returns the exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    except CycloptsError as error:
        complain(" ".join(str(error).split()))
        return UsageError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
