"""A bundle whose image encoder knows the text space: pictures are found by words that nobody told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
import pytest
import torch

from edge_ravlm.bundle import Bundle, write_bundle
from edge_ravlm.errors import UsageError
from edge_ravlm.export.align.head import Meaning, with_meaning
from edge_ravlm.export.parts import text_embedder
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import UNKNOWN
from edge_ravlm.runtime.opening import load, open_memory
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.transfer import export_memory, import_rows, read_rows, reembed

pytestmark = pytest.mark.export


def picture(colour: tuple[int, int, int], shift: int = 0) -> np.ndarray:
    """A disc of a colour on grey."""
    canvas = np.full((240, 320, 3), 128, np.uint8)
    return np.asarray(cv2.circle(canvas, (160 + shift, 120), 80, colour, -1), np.uint8)


RED, BLUE = picture((30, 30, 220)), picture((220, 60, 30))
SEEN = {"a red ball": RED, "the blue sky": BLUE}


@pytest.fixture(scope="module")
def bundle(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The starter with a head that knows two pictures, and what to call them."""
    manifest, flavor = plain.manifest, plain.manifest.flavor("cpu-u8")
    text, tokenizer = plain.read(flavor.text.file), plain.read(manifest.tokenizer)
    with load(plain, threads=1) as ravlm:
        inputs = [ravlm._image.preprocess(Frame.of(shown), None) for shown in SEEN.values()]
        session = ravlm._image._session
        tokens = torch.from_numpy(np.concatenate([session.run({"image": one}, ("tokens",))[0] for one in inputs]))
    head = Meaning(torch.zeros(tokens.shape[2]), len(SEEN), manifest.text_space.dim).requires_grad_(requires_grad=False)
    features = torch.nn.functional.normalize(tokens.mean(1), dim=1)
    middle, apart = features.mean(0), features - features.mean(0)
    head.widen.weight.copy_(apart)
    head.widen.bias.copy_(-apart @ middle)
    head.project.weight.copy_(torch.from_numpy(text_embedder(text, tokenizer)(list(SEEN)).T))
    head.project.bias.zero_()
    contents = {record.path: plain.read(record.path) for record in manifest.files}
    graph = onnx.load_model_from_string(contents[flavor.image.file])
    contents[flavor.image.file] = with_meaning(graph, head, int8=True).SerializeToString()
    space = head.space(manifest.image_space, manifest.text_space)
    return write_bundle(
        tmp_path_factory.mktemp("meaning") / "bundle", msgspec.structs.replace(manifest, meaning_space=space), contents
    )


@pytest.fixture
def ravlm(bundle: Bundle) -> Iterator[Ravlm]:
    with load(bundle, threads=1) as opened:
        yield opened


def test_words_find_pictures_of_which_nothing_was_said(ravlm: Ravlm) -> None:
    ids = {name: ravlm.memory.add([ravlm.entry(shown, "")])[0] for name, shown in SEEN.items()}
    for name, id_ in ids.items():
        best = ravlm.search(text=name)[0]
        assert (best.id, best.text) == (id_, "")
        assert best.score > 0.9


def test_what_a_picture_shows_counts_beside_what_was_said_of_it(ravlm: Ravlm) -> None:
    told = ravlm.remember(RED, "grandmother's birthday present")
    ravlm.remember(BLUE, "the view from the attic")
    assert ravlm.search(text="grandmother's birthday present", k=1)[0].id == told
    assert ravlm.search(text="a red ball", k=1)[0].id == told


def test_a_picture_finds_the_texts_that_describe_it(ravlm: Ravlm) -> None:
    facts = [ravlm.memory.add([ravlm.entry(None, text)])[0] for text in ("the blue sky", "a red ball", "a recipe")]
    assert ravlm.search(picture=picture((30, 30, 220), shift=4), of="text")[0].id == facts[1]
    assert ravlm.search(picture=BLUE, of="text", k=1)[0].id == facts[0]
    assert ravlm.search(picture=BLUE) == []  # no picture is in memory


def test_no_answer_comes_from_a_picture_of_which_nothing_was_said(ravlm: Ravlm) -> None:
    ravlm.memory.add([ravlm.entry(RED, "")])
    assert ravlm.ask(RED, "what is this?", budget_ms=600_000).text == UNKNOWN
    ravlm.remember(RED, "my ball")
    assert {evidence.text for evidence in ravlm.ask(RED, "what is this?", budget_ms=600_000).evidence} <= {"my ball"}


def test_a_memory_of_a_bundle_without_the_head_goes_on(bundle: Bundle, plain: Bundle, tmp_path: Path) -> None:
    with load(plain, tmp_path / "old.memory", threads=1) as old:
        (known,) = old.memory.add([old.entry(RED, "grandmother's birthday present")])
    with load(bundle, tmp_path / "old.memory", threads=1, read_only=True) as reader:
        assert [hit.id for hit in reader.search(text="a birthday present")] == [known]
    with load(bundle, tmp_path / "old.memory", threads=1) as newer:
        new = newer.remember(BLUE, "the view from the attic")
        assert newer.search(text="the blue sky", k=1)[0].id == new
        assert newer.search(text="a birthday present", k=1)[0].id == known
        assert newer.search(text="a red ball", k=1)[0].score < 0.9
        reembed(newer, newer.memory, lambda: None)
        assert newer.search(text="a red ball", k=1)[0].id == known
        assert newer.search(text="a red ball", k=1)[0].score > 0.9
    with load(plain, tmp_path / "old.memory", threads=1) as old:
        assert old.search(text="a birthday present", k=1)[0].id == known


def test_pictures_of_which_nothing_was_said_are_exported_and_imported(
    ravlm: Ravlm, plain: Bundle, tmp_path: Path
) -> None:
    ravlm.memory.add([ravlm.entry(RED, ""), ravlm.entry(BLUE, "the view from the attic")])
    assert export_memory(ravlm.memory, tmp_path / "list", lambda: None) == 2
    rows, base = read_rows(tmp_path / "list")
    with load(plain, threads=1) as without:
        outcome = import_rows(without, rows, base, lambda: None)
        assert (outcome.added, len(outcome.skipped)) == (1, 1)
    ravlm.forget([entry.id for entry in ravlm.memory.entries()])
    assert import_rows(ravlm, rows, base, lambda: None).added == 2
    assert ravlm.search(text="a red ball", k=1)[0].text == ""


def test_without_a_meaning_space_a_picture_needs_words_and_finds_none(plain: Bundle, tmp_path: Path) -> None:
    with load(plain, threads=1) as ravlm:
        with pytest.raises(UsageError, match="memory text"):
            ravlm.entry(RED, "")
        with pytest.raises(UsageError, match=r"no meaning_space.*align\.sources"):
            ravlm.search(picture=RED, of="text")
    assert "meaning" not in open_memory(plain, tmp_path / "m").spaces
