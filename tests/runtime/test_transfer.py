"""Importing, exporting and re-embedding memories: what goes in comes out, and bad lists import nothing."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import DataError, SpaceMismatch
from edge_ravlm.runtime.memory import Memory, Space
from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.transfer import export_memory, import_rows, read_rows, reembed


def nothing(**_: object) -> None:
    pass


@pytest.fixture
def ravlm(tmp_path: Path):
    with load("starter", tmp_path / "home.memory", threads=1) as opened:
        yield opened


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    pixels = np.full((60, 80, 3), colour, np.uint8)
    pixels[20:40, 30:50] = 255 - pixels[20:40, 30:50]
    assert cv2.imwrite(str(path), pixels)
    return path


def test_a_folder_is_imported_by_its_file_names(ravlm: Ravlm, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "red_mug-left.png", (0, 0, 200))
    picture(folder / "blue bowl.png", (200, 0, 0))
    rows, base = read_rows(folder)
    outcome = import_rows(ravlm, rows, base, nothing)
    assert outcome.added == 2
    assert {entry.text for entry in ravlm.memory.entries()} == {"red mug left", "blue bowl"}


def test_jsonl_and_csv_say_the_same(ravlm: Ravlm, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (10, 120, 40))
    (tmp_path / "list.jsonl").write_text(
        json.dumps({"text": "the gate", "image": "a.png", "answer": "gate", "tags": {"camera": "drive"}})
        + "\n\n"
        + json.dumps({"text": "bins go out on Monday", "time": 5.0})
        + "\n"
    )
    (tmp_path / "list.csv").write_text(
        "text,image,answer,time,tag:camera\nthe gate,a.png,gate,,drive\nbins go out on Monday,,,5.0,\n"
    )
    lists = [read_rows(tmp_path / name)[0] for name in ("list.jsonl", "list.csv")]
    assert lists[0] == lists[1]
    assert import_rows(ravlm, lists[0], tmp_path, nothing).added == 2
    kinds = {entry.text: entry.modality for entry in ravlm.memory.entries()}
    assert kinds == {"the gate": "image", "bins go out on Monday": "text"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "x"}\n', "line 2"),
        ("a.jsonl", b'{"text": "fine"}\nnot json\n', "line 2"),
        ("a.jsonl", b'{"text": "  "}\n', "line 1"),
        ("a.jsonl", b"", "none"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "UTF-8"),
        ("a.csv", b"text,colour\nfine,red\n", "line 2"),
        ("a.csv", b"image\nb.png\n", "line 2"),
        ("a.txt", b"text", "another kind"),
        ("a.csv", b"text,image\nfine,b.png,surplus\n", "line 2"),
        ("a.csv", b'text\n"two\nlines"\n" "\n', "line 4"),
        ("a.csv", b'text\n"' + b"x" * 200_000 + b'"\n', "line"),
        ("a.csv", b"text,time\nfine,noon\n", "line 2"),
        ("a.csv", b"text,tags\nfine,camera=drive\n", "line 2"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "x", "modality": "smell"}\n', "line 2.*smell"),
        ("a.jsonl", b'{"text": "x", "tags": {"n": 1e400}}\n', "line 1"),
        ("a.jsonl", b'{"text": "x", "tags": {"n": 99999999999999999999}}\n', "line 1"),
        ("a.jsonl", b'{"text": "%s"}\n' % (b"x" * 10_001), "line 1.*10001"),
    ],
)
def test_a_bad_list_is_refused_before_anything_is_imported(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_rows(tmp_path / name)


def test_missing_sources_and_empty_folders_are_named(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=str(source)):
            read_rows(source)


def test_unreadable_pictures_are_skipped_and_named_while_the_rest_is_imported(ravlm: Ravlm, tmp_path: Path) -> None:
    picture(tmp_path / "good.png", (90, 90, 10))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "l.csv").write_text("text,image\ngood,good.png\nbad,bad.png\ngone,gone.png\n")
    rows, base = read_rows(tmp_path / "l.csv")
    outcome = import_rows(ravlm, rows, base, nothing)
    assert outcome.added == 1
    assert len(outcome.skipped) == 2
    assert "bad.png" in outcome.skipped[0]


def test_texts_with_line_breaks_of_every_kind_survive(ravlm: Ravlm, tmp_path: Path) -> None:
    texts = ["two\nlines", "two\r\nlines", "a\u2028b", "a\x85b", "a\x0bb\x0cc\x1cd", 'say "so", twice']
    ravlm.memory.add([ravlm.entry(None, text) for text in texts])
    export_memory(ravlm.memory, tmp_path / "out", nothing)
    rows, _ = read_rows(tmp_path / "out")
    assert [row.text for row in rows] == texts
    with (tmp_path / "LIST.CSV").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    rows, _ = read_rows(tmp_path / "LIST.CSV")
    assert [row.text for row in rows] == texts


def test_a_text_that_no_encoder_can_read_is_skipped_and_named_while_the_rest_is_imported(
    ravlm: Ravlm, tmp_path: Path
) -> None:
    (tmp_path / "l.jsonl").write_text('{"text": "\\u0001"}\n{"text": "fine"}\n')
    rows, base = read_rows(tmp_path / "l.jsonl")
    outcome = import_rows(ravlm, rows, base, nothing)
    assert (outcome.added, len(outcome.skipped)) == (1, 1)
    assert "at least one word" in outcome.skipped[0]
    picture(tmp_path / "___.png", (0, 0, 200))
    picture(tmp_path / "gate.png", (0, 200, 0))
    rows, base = read_rows(tmp_path)
    outcome = import_rows(ravlm, rows, base, nothing)
    assert (outcome.added, len(outcome.skipped)) == (1, 1)
    assert "___.png" in outcome.skipped[0]


def test_an_exported_memory_imports_as_it_was(ravlm: Ravlm, tmp_path: Path) -> None:
    pixels = cv2.imread(str(picture(tmp_path / "a.png", (10, 120, 40))))
    ravlm.remember(pixels, "the gate – ouvert", answer="open", tags={"camera": "drive", "n": 3})
    ravlm.memory.add([ravlm.entry(None, "bins go out on Monday", at=7.0)])
    assert export_memory(ravlm.memory, tmp_path / "out", nothing) == 2
    rows, base = read_rows(tmp_path / "out")
    with load("starter", tmp_path / "copy.memory", threads=1) as other:
        assert import_rows(other, rows, base, nothing).added == 2
        copied, original = list(other.memory.entries()), list(ravlm.memory.entries())
        for name in ("text", "answer", "tags", "modality", "time"):
            assert [getattr(e, name) for e in copied] == [getattr(e, name) for e in original]
        assert other.ask(pixels, "what is this?").text == "open"


def test_what_was_taught_in_a_region_is_looked_at_alike_after_a_round_trip(
    ravlm: Ravlm, tmp_path: Path, yard: Any
) -> None:
    ids = [ravlm.remember(getattr(yard, name), f"the gate is {name}", region=yard.gate) for name in ("open", "closed")]
    export_memory(ravlm.memory, tmp_path / "out", nothing)
    rows, base = read_rows(tmp_path / "out")
    with load("starter", tmp_path / "copy.memory", threads=1) as copy, Memory.open(tmp_path / "home.memory") as same:
        import_rows(copy, rows, base, nothing)
        reembed(copy, same, nothing)  # from the same kept pictures
        np.testing.assert_allclose(copy.memory.vectors("image", ids), same.vectors("image", ids), atol=1e-3)


def test_an_import_adds_only_what_is_not_there(ravlm: Ravlm, tmp_path: Path) -> None:
    for name, colour in (("mug", (0, 0, 200)), ("bowl", (200, 0, 0))):
        picture(tmp_path / f"{name}.png", colour)
    facts = '{"text": "bins go out on Monday"}\n' * 2 + '{"text": "bins go out on Monday", "time": 5.0}\n'
    (tmp_path / "one.jsonl").write_text('{"text": "a thing", "image": "mug.png", "time": 7.0}\n' + facts)
    outcome = import_rows(ravlm, *read_rows(tmp_path / "one.jsonl"), nothing)
    assert (outcome.added, outcome.present) == (4, 0)
    outcome = import_rows(ravlm, *read_rows(tmp_path / "one.jsonl"), nothing)
    assert (outcome.added, outcome.present) == (0, 4)
    # Another picture, answer, tag or time makes another entry, whatever else is the same.
    (tmp_path / "two.jsonl").write_text(
        '{"text": "a thing", "image": "bowl.png", "time": 7.0}\n'
        '{"text": "a thing", "image": "mug.png", "time": 8.0}\n'
        '{"text": "a thing", "image": "mug.png", "time": 7.0, "answer": "mug"}\n'
        '{"text": "a thing", "image": "mug.png", "time": 7.0, "tags": {"n": 1}}\n'
    )
    outcome = import_rows(ravlm, *read_rows(tmp_path / "two.jsonl"), nothing)
    assert (outcome.added, outcome.present) == (4, 0)


def test_an_export_is_merged_into_the_memory_that_lost_a_part_of_it(ravlm: Ravlm, tmp_path: Path) -> None:
    pixels = cv2.imread(str(picture(tmp_path / "a.png", (10, 120, 40))))
    ids = [ravlm.remember(pixels, "the gate is open") for _ in range(3)]
    export_memory(ravlm.memory, tmp_path / "out", nothing)
    ravlm.forget(ids[:1])
    outcome = import_rows(ravlm, *read_rows(tmp_path / "out"), nothing)
    assert (outcome.added, outcome.present, len(ravlm.memory)) == (1, 2, 3)


def test_export_refuses_a_folder_that_is_there(ravlm: Ravlm, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="choose another name"):
        export_memory(ravlm.memory, tmp_path / "out", nothing)


def test_a_memory_of_another_encoder_is_refused_until_it_is_embedded_again(tmp_path: Path) -> None:
    path = tmp_path / "old.memory"
    pixels = cv2.imread(str(picture(tmp_path / "a.png", (10, 120, 40))))
    with load("starter", threads=1) as ravlm:
        entry = ravlm.entry(pixels, "the gate is open")
        fact = ravlm.entry(None, "bins go out on Monday")
        foreign = {"image": Space("0" * 64, 8), "text": Space("1" * 64, 8)}
        with Memory.open(path, foreign) as memory:
            for new in (entry, fact):
                vectors = {name: np.eye(8, dtype=np.float32)[0] for name in foreign if name in new.vectors}
                memory.add([dataclasses.replace(new, vectors=vectors)])
        with pytest.raises(SpaceMismatch, match="reembed"):
            load("starter", path)
        with Memory.open(path) as memory:
            assert reembed(ravlm, memory, nothing) == []
    with load("starter", path, threads=1) as again:
        assert again.ask(pixels, "is the gate open?").text == "the gate is open"
        assert again.memory.spaces["image"].id == Bundle.open("starter").manifest.image_space.id
        assert again.memory.verify() == []


def test_what_is_taught_while_a_memory_is_embedded_again_is_found(tmp_path: Path) -> None:
    path = tmp_path / "old.memory"
    foreign = {"image": Space("0" * 64, 8), "text": Space("1" * 64, 8)}
    with load("starter", threads=1) as ravlm, Memory.open(path, foreign) as writer, Memory.open(path) as memory:
        facts = iter([ravlm.entry(None, text) for text in ("bins go out on Monday", "the key is under the pot")])

        def teach(**_: object) -> None:
            for fact in itertools.islice(facts, 1):
                writer.add([dataclasses.replace(fact, vectors={"text": np.eye(8, dtype=np.float32)[0]})])

        teach()
        assert reembed(ravlm, memory, teach) == []
    with load("starter", path, threads=1) as again:
        assert {hit.text for hit in again.search(text="the key")} == {
            "bins go out on Monday",
            "the key is under the pot",
        }
