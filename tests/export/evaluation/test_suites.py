"""Easy-VQA, captions, the report and the command."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import UsageError
from edge_ravlm.export.data import datasets, furniture, signs
from edge_ravlm.export.data.datasets import EasyVqa
from edge_ravlm.export.data.easy_vqa import Question
from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.scenes import Material, Stamp
from edge_ravlm.export.data.signs import named
from edge_ravlm.export.evaluation import suites
from edge_ravlm.export.evaluation.outcome import QUICK, UNREAD, Confidences, Extent, Outcome, meaning
from edge_ravlm.export.evaluation.report import report_files
from edge_ravlm.export.evaluation.subject import Episode
from edge_ravlm.export.evaluation.suites import easy_vqa, text_to_image

from .conftest import Eyes, Fake, silent, subject

pytestmark = pytest.mark.export


@pytest.fixture
def shapes(tmp_path: Path) -> EasyVqa:
    """Two test pictures, tones 10 and 20, and a training part that mostly says yes."""
    for tone in (10, 20):
        cv2.imwrite(str(tmp_path / f"{tone}.png"), np.full((8, 8, 3), tone, np.uint8))
    rows = [
        (10, "is it dark?", "yes"),
        (20, "is it dark?", "no"),
        (20, "what is it?", "grey"),
        (10, "what is it?", "yes"),
    ]
    held_out = tuple(Question(tmp_path / f"{tone}.png", text, answer) for tone, text, answer in rows)
    train = (*(Question(tmp_path / "10.png", "is it dark?", "yes"),) * 3, Question(tmp_path / "20.png", "?", "no"))
    return EasyVqa(train, held_out, ("yes", "no", "grey"))


def test_easy_vqa_counts_exact_answers_beside_two_baselines(shapes: EasyVqa) -> None:
    def dark(episode: Episode) -> str | None:
        assert not episode.passages
        return "no" if episode.cells.mean() == 20 else "yes" if episode.cells.mean() == 10 else "grey"

    outcome = easy_vqa(subject(Fake(dark)), shapes, QUICK, silent)
    # Right with the picture: yes, no, (grey is "no"), yes. Without: "grey" to all. The commonest: "yes" to all.
    assert outcome.figures == {"exact_match": 0.75, "question_only": 0.25, "majority": 0.5}
    assert outcome.counts == {"questions": 4, "pictures": 2}
    part = easy_vqa(subject(Fake(dark)), shapes, Extent(1, 1, 1, 1, pictures=1), silent)
    assert part.counts == {"questions": 2, "pictures": 1}


def test_easy_vqa_without_a_decoder_says_so(shapes: EasyVqa) -> None:
    outcome = easy_vqa(subject(), shapes, QUICK, silent)
    assert (outcome.figures, outcome.remarks) == ({"majority": 0.5}, [UNREAD])


class Namers:
    """A text encoder to which "tone 7" is what tone 7 looks like."""

    def embed(self, texts: list[str]) -> np.ndarray:
        found = np.zeros((len(texts), 64), np.float32)
        found[range(len(texts)), [int(text.split()[1]) for text in texts]] = 1
        return found

    embed_question = None


def test_a_caption_finds_its_picture_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def scene(source: Material, index: int, rng: np.random.Generator) -> np.ndarray:
        return np.ascontiguousarray(source.objects[index][..., :3])

    monkeypatch.setattr(suites, "object_scene", scene)
    stamps = [Stamp(np.full((8, 8, 4), tone, np.uint8), f"tone {tone}") for tone in range(40)]
    # Those that nothing tells apart from tone 0 are found among the first ten only.
    liars = [Stamp(np.full((8, 8, 4), 63, np.uint8), f"tone {tone}") for tone in (50, 51)]
    of = subject(has_meaning=True)
    named_ones = type(of)(of.name, Eyes(), Namers(), None, of.image_space, of.text_space, True)  # type: ignore[arg-type]
    unseen = [*stamps[20:], *liars, Stamp(stamps[0].pixels, "")]
    recall, asked, gallery = text_to_image(named_ones, stamps[:20], unseen, Material([], []), silent)
    assert (recall, asked, gallery) == (20 / 22, 22, 42)


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(UsageError, match="easy-vqa"):
        suites.run("zoo", subject(), QUICK, silent)


def test_the_report_has_every_figure_and_its_plots() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 200)
    outcome = Outcome(
        "traffic",
        "fake",
        {"show_once_recall1_heldout": 0.75, "follows_edit": 0.5, "aurc": 0.25},
        {"questions": 200},
        {"show_once_recall1_heldout": 0.001},
        Confidences(confidence, rng.random(200) < confidence),
        ["Something was left out."],
    )
    files = report_files(outcome, {"quick": True})
    assert set(files) == {"report.json", "report.md", "floors.png", "risk_coverage.png", "reliability.png"}
    plain = msgspec.json.decode(files["report.json"])
    assert (plain["follows_edit"], plain["counts"], plain["setting"]) == (0.5, {"questions": 200}, {"quick": True})
    page = files["report.md"].decode()
    assert (
        "| show_once_recall1_heldout | 0.7500 | 0.0010 | the thing shown once is the nearest picture (heldout) |"
        in page
    )
    assert "Something was left out." in page
    for name in ("floors.png", "risk_coverage.png", "reliability.png"):
        assert f"({name})" in page
        assert cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR) is not None


def test_every_figure_says_what_it_means() -> None:
    assert meaning("show_once_recall5_designs") == "it is among the five nearest (designs)"
    assert meaning("two_hop_searching_once") == "the same without the second search"


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve signs and twelve objects, of which some are held out, on plain backgrounds."""
    rng = np.random.default_rng(0)

    def disc() -> np.ndarray:
        return np.dstack([rng.integers(0, 256, (24, 24, 3)), np.full((24, 24), 255)]).astype(np.uint8)

    known = [named(f"warning--m-{n}--g{d}", disc()) for n in range(200) for d in (1, 2)][:324]
    pieces = [
        Piece(f"T#{n}", disc(), f"thing {'abcdefgh'[n % 8]}", "Kitchen", (), 10, 20, 30, "Ada", "CC0-1.0")
        for n in range(12)
    ]
    monkeypatch.setattr(signs, "signs", lambda: known)
    monkeypatch.setattr(furniture, "furniture", lambda: pieces)
    for name in ("photographs", "rooms"):
        monkeypatch.setattr(datasets, name, lambda half: [np.full((300, 300, 3), 120, np.uint8)])


@pytest.mark.parametrize("suite", ["home", "traffic"])
def test_the_command_judges_the_starter_and_says_what_it_could_not(
    suite: str, small_sets: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    assert command(["eval", "starter", "--suite", suite, "--quick", "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "show_once_recall1_heldout" in shown
    assert UNREAD in shown
    assert "Quick" in shown
    plain = msgspec.json.decode((report / "report.json").read_bytes())
    assert 0 <= plain["show_once_recall1_heldout"] <= plain["show_once_recall5_heldout"] <= 1
    assert plain["setting"]["quick"] is True
    assert command(["eval", "starter", "--suite", suite, "--quick", "--json"]) == 0
    again = msgspec.json.decode(capsys.readouterr().out)
    assert again["show_once_recall1_heldout"] == plain["show_once_recall1_heldout"]
    assert again["quick"] is True


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["eval", str(tmp_path), "--suite", "home"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert command(["eval", "starter", "--suite", "zoo"]) == 2
    assert "easy-vqa" in capsys.readouterr().err
