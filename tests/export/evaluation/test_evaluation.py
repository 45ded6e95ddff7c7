"""The suites on readers whose answers are known: every figure can be worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import UsageError
from edge_ravlm.export.data import datasets, furniture, signs
from edge_ravlm.export.data.composites import WEAR, Wear
from edge_ravlm.export.data.datasets import EasyVqa, Part
from edge_ravlm.export.data.easy_vqa import Question
from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.questions import Asked, Hops
from edge_ravlm.export.data.scenes import Stamp
from edge_ravlm.export.data.signs import Sign, named
from edge_ravlm.export.evaluation import show_once, suites
from edge_ravlm.export.evaluation.outcome import QUICK, UNREAD, Confidences, Extent, Outcome, meaning
from edge_ravlm.export.evaluation.report import report_files
from edge_ravlm.export.evaluation.show_once import Showing, judge
from edge_ravlm.export.evaluation.subject import Episode, Reader, Reply, Subject
from edge_ravlm.export.evaluation.suites import easy_vqa, text_to_image
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.manifest import Answering
from edge_ravlm.runtime.encoders import Look
from edge_ravlm.runtime.memory import Space

pytestmark = pytest.mark.export

DIM = 64
RULES = Answering(image_floor=0.3, text_floor=0.3, sibling_floor=0.5, sharpness=10.0, abstain_below=0.6)


class Flat(Part[Sign]):
    """A thing's scene is its own tone all over."""

    def scene(self, index: int, rng: np.random.Generator, wear: Wear = WEAR) -> Pixels:
        return np.full((8, 8, 3), self.things[index].pixels[0, 0, 0], np.uint8)


class Eyes:
    """Every tone looks in a direction of its own, or all in the same one."""

    def __init__(self, sharp: bool = True) -> None:
        self.sharp = sharp

    def look(self, frame: Frame) -> Look:
        embedding, tone = np.zeros(DIM, np.float32), frame.pixels[0, 0, 0]
        embedding[tone if self.sharp else 0] = 1
        return Look(embedding, np.full((1, 2, 3), tone, np.float32), embedding)

    closer_look = study = look


class Letters:
    """How often each letter stands in a sentence."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([np.bincount([ord(letter) % DIM for letter in text], minlength=DIM) for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)

    def embed_question(self, question: str) -> np.ndarray:
        return self.embed([question])[0]


@dataclass
class Fake:
    """A reader that answers by a rule: a text, or None for an abstention."""

    rule: Callable[[Episode], str | None]
    confidence: float = 1.0
    entries: int = 3
    abstain_above: float = 0.5

    def answer(self, episode: Episode) -> Reply:
        text = self.rule(episode)
        copied = np.zeros(len(episode.passages), np.float32)
        return Reply("", 1.0, 0.0, copied) if text is None else Reply(text, 0.0, self.confidence, copied)

    def milliseconds(self, episodes: Sequence[Episode]) -> float:
        return float(len(episodes))


def copied(episode: Episode) -> str | None:
    """Passage 1 as it is."""
    return episode.passages[0].text if episode.passages else "nothing"


def read(episode: Episode) -> str | None:
    """What passage 1 says of the asked kind if its picture is the one that is asked about; a code is followed up."""
    if not episode.passages or (episode.passages[0].image_cosine or 0) < 0.99:
        return None
    said = _value(episode.question, episode.passages[0].text)
    code = _value("code", episode.passages[0].text)
    if said is None and code is not None:
        texts = [passage.text for passage in episode.passages if f"{code} explained" in passage.text]
        said = _value(episode.question, texts[0]) if texts else None
    return said


def _value(kind: str, text: str) -> str | None:
    found = re.search(rf"\b{kind}=([^.,;]*)", text, re.IGNORECASE)
    return None if found is None else found[1]


def plain(thing: Sign, rng: np.random.Generator, half: str) -> list[Asked]:
    """Facts that ``read`` can read."""
    answers = {"meaning": thing.meaning, "category": thing.category, "caption": f"one two three {thing.meaning}"}
    answers["owner"] = f"owner of {thing.design}"
    return [Asked(kind, answer, f"{kind}={answer}", kind) for kind, answer in answers.items()]


def plain_hops(answer: str, rng: np.random.Generator, half: str) -> Hops:
    code = f"K{rng.integers(10**6)}"
    return Hops("meaning", answer, f"code={code}", f"{code} explained; meaning={answer}", code, "code")


@contextmanager
def silent(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    yield lambda **_: None


@pytest.fixture
def worded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries say their facts in a wording that ``read`` understands."""
    monkeypatch.setattr(show_once, "asked", plain)
    monkeypatch.setattr(show_once, "hops", plain_hops)


def subject(reader: Reader | None = None, *, sharp: bool = True, has_meaning: bool = False) -> Subject:
    return Subject("fake", Eyes(sharp), Letters(), reader, Space("i", DIM), Space("t", DIM), RULES, has_meaning)


def sign(number: int, meaning: str, design: str) -> Sign:
    return named(f"warning--{meaning}--{design}", np.full((2, 2, 4), number, np.uint8))


MEANINGS = ("ice", "snow", "rain", "fog", "wind")
THINGS = tuple(
    sign(2 * number + twin, meaning, f"g{twin}") for number, meaning in enumerate(MEANINGS) for twin in (0, 1)
)
"""Ten signs, two designs of each meaning."""


def part(*rows: int) -> Flat:
    return Flat(tuple(THINGS[row] for row in rows), ())


SHOWING = Showing(part(*range(10)), part(0, 5), {"seen": part(3, 4)})
"""Ten signs in the memory; asked about are those of the rows 0 and 5."""


EXTENT = Extent(scenes=4, others=10, questions=8, hops=4, pictures=2)


def judged(of: Subject) -> Outcome:
    return judge("traffic", of, SHOWING, EXTENT, silent)


def test_sharp_eyes_find_everything_and_nothing_is_read_without_a_decoder(worded: None) -> None:
    outcome = judged(subject())
    assert {name: value for name, value in outcome.figures.items() if name != "average_precision"} == {
        "show_once_recall1_heldout": 1,
        "show_once_recall5_heldout": 1,
        "show_once_recall1_seen": 1,
        "show_once_recall5_seen": 1,
        "vote_answers": 1,
        "vote_right": 1,
        "vote_abstains_when_removed": 1,
    }
    assert outcome.floors["show_once_recall1_heldout"] == 0.1
    assert outcome.floors["show_once_recall5_heldout"] == 0.5
    assert outcome.counts == {"scenes_heldout": 8, "scenes_seen": 2}
    assert outcome.remarks == [UNREAD]
    assert outcome.confidences is None


def test_ranks_and_precision_are_counted_where_all_looks_alike(worded: None) -> None:
    figures = judged(subject(sharp=False)).figures  # equal scores come in the order of the rows
    assert figures["show_once_recall1_heldout"] == 0.5  # row 0 is the first, row 5 the sixth
    assert figures["show_once_recall5_heldout"] == 0.5
    assert figures["show_once_recall1_seen"] == 0  # rows 3 and 4
    assert figures["show_once_recall5_seen"] == 1
    assert figures["vote_answers"] == 0, "nobody leads"
    assert "vote_right" not in figures
    # Rows 0 and 1 mean the same, and so do 4 and 5.
    assert figures["average_precision"] == pytest.approx(((1 + 1) / 2 + (1 / 5 + 2 / 6) / 2) / 2)


def test_one_who_reads_well_gets_everything(worded: None) -> None:
    outcome = judged(subject(Fake(read)))
    expected = dict.fromkeys(
        ("reading_accuracy", "follows_edit", "follows_edit_unseen_words", "abstains_when_removed"), 1.0
    )
    expected |= dict.fromkeys(("end_to_end_heldout", "f1", "one_hop", "two_hop"), 1.0)
    expected |= dict.fromkeys(("false_abstention", "end_to_end_no_memory", "question_only", "ece"), 0.0)
    assert {name: outcome.figures[name] for name in expected} == expected
    # 8 right answers, surely, then 8 that nothing answers, all of equal confidence.
    assert outcome.figures["aurc"] == pytest.approx(np.mean([*[0] * 8, *(k / (8 + k) for k in range(1, 9))]))
    assert outcome.figures["decode_ms_p50"] == 8
    assert outcome.counts["questions"] == 8


def test_descriptions_are_scored_where_they_are_asked_for(worded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_once, "CAPTIONED", 1.0)
    assert judged(subject(Fake(read))).figures["bleu_describe"] == pytest.approx(1)
    assert judged(subject(Fake(lambda episode: "something else"))).figures["bleu_describe"] == 0


def test_the_second_search_is_what_finds_the_explanation(worded: None) -> None:
    def only_by_hopping(episode: object) -> str | None:
        return read(episode) if any(one.second_hop for one in episode.passages) else None  # type: ignore[attr-defined]

    figures = judged(subject(Fake(only_by_hopping, entries=1))).figures
    assert figures["two_hop_searching_once"] == figures["one_hop"] == 0


def test_one_who_always_abstains_is_right_only_where_nothing_answers(worded: None) -> None:
    figures = judged(subject(Fake(lambda episode: None))).figures
    assert figures["abstains_when_removed"] == figures["false_abstention"] == 1
    for name in ("reading_accuracy", "follows_edit", "end_to_end_heldout", "f1", "two_hop", "ece"):
        assert figures[name] == 0
    assert figures["aurc"] == 1


def test_one_who_copies_passage_1_follows_edits_and_never_abstains(
    worded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(thing: Sign, rng: np.random.Generator, half: str) -> list[Asked]:
        return [Asked("caption", thing.sentence, thing.sentence, "caption")]

    monkeypatch.setattr(show_once, "asked", bare)
    figures = judged(subject(Fake(copied))).figures
    for name in ("reading_accuracy", "end_to_end_heldout", "retrieved_vote_only", "follows_edit", "f1"):
        assert figures[name] == 1
    for name in ("abstains_when_removed", "false_abstention", "end_to_end_no_memory"):
        assert figures[name] == 0
    # As sure as can be of 8 right answers and of 8 wrong ones.
    assert figures["aurc"] == figures["ece"] == 0.5


def test_edits_and_reading_count_only_what_was_retrieved(worded: None) -> None:
    outcome = judged(subject(Fake(read, entries=1), sharp=False))
    # Row 0 comes first whatever is shown: half of the questions are about row 5, and read wrong or by the text.
    assert outcome.figures["follows_edit"] == 1
    assert outcome.figures["end_to_end_heldout"] < outcome.figures["reading_accuracy"]


def test_baselines_follow_from_the_memory(worded: None) -> None:
    outcome = judged(subject(Fake(read)))
    # The nearest entry's stored answer is what its first fact says; the commonest category is the only one.
    assert 0 < outcome.figures["retrieved_vote_only"] < 1
    assert 0 < outcome.figures["majority"] < 1


def test_equal_seeds_give_equal_figures(worded: None) -> None:
    assert judged(subject(Fake(read))).summary() == judged(subject(Fake(read))).summary()


def test_real_wordings_run_through(worded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    figures = judged(subject(Fake(copied))).figures
    assert figures["show_once_recall1_heldout"] == 1
    assert figures["abstains_when_removed"] == 0


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
    monkeypatch.setattr(suites, "clean", lambda cut_out: np.ascontiguousarray(cut_out[..., :3]))
    stamps = [Stamp(np.full((8, 8, 4), tone, np.uint8), f"tone {tone}") for tone in range(40)]
    # Those that nothing tells apart from tone 0 are found among the first ten only.
    liars = [Stamp(np.full((8, 8, 4), 63, np.uint8), f"tone {tone}") for tone in (50, 51)]
    of = subject(has_meaning=True)
    named_ones = type(of)(of.name, Eyes(), Namers(), None, of.image_space, of.text_space, True)  # type: ignore[arg-type]
    unseen = [*stamps[20:], *liars, Stamp(stamps[0].pixels, "")]
    recall, asked, gallery = text_to_image(named_ones, stamps[:20], unseen, silent)
    assert (recall, asked, gallery) == (20 / 22, 22, 42)


class Deaf:
    """A text encoder to which all texts are nearly alike, the more the shorter they are."""

    def embed(self, texts: list[str]) -> np.ndarray:
        found = np.ones((len(texts), 64), np.float32)
        found[:, 0] = [len(text) for text in texts]
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def embed_question(self, question: str) -> np.ndarray:
        return np.asarray(self.embed([question])[0])


def test_names_are_found_by_their_words() -> None:
    names = [
        f"{one}{other}" for one in ("kar", "lom", "tis", "bur", "vel", "nod", "pim") for other in ("ta", "ko", "mi")
    ]
    pieces = [
        Piece(f"T#{name}", np.zeros((8, 8, 4), np.uint8), name, "Kitchen", (), 10, 20, 30, "Ada", "CC0-1.0")
        for name in names
    ]
    of = subject()
    deaf = type(of)(of.name, Eyes(), Deaf(), None, of.image_space, of.text_space, True)  # type: ignore[arg-type]
    with_words, vectors_alone, *counts = suites.text_to_text(deaf, pieces, pieces[:15], silent)
    assert with_words > 0.9
    assert vectors_alone < 0.2
    assert counts == [15, 21]


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
    """A few more signs than are held out, and twelve objects, on plain backgrounds."""
    rng = np.random.default_rng(0)

    def disc() -> np.ndarray:
        return np.dstack([rng.integers(0, 256, (24, 24, 3)), np.full((24, 24), 255)]).astype(np.uint8)

    known = [named(f"warning--m-{n}--g1", disc()) for n in range(154)]
    pieces = [
        Piece(f"T#{n}", disc(), f"thing {'abcdefgh'[n % 8]}", "Kitchen", (), 10, 20, 30, "Ada", "CC0-1.0")
        for n in range(12)
    ]
    monkeypatch.setattr(signs, "signs", lambda: known)
    monkeypatch.setattr(furniture, "furniture", lambda: pieces)
    for name in ("photographs", "rooms"):
        monkeypatch.setattr(datasets, name, lambda half: [np.full((300, 300, 3), 120, np.uint8)])


@pytest.mark.parametrize("suite", ["home", "traffic"])
def test_the_command_judges_a_bundle_and_says_what_it_could_not(
    suite: str,
    plain_folder: Path,
    small_sets: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = tmp_path / "report"
    assert command(["eval", str(plain_folder), "--suite", suite, "--quick", "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "show_once_recall1_heldout" in shown
    assert UNREAD in shown
    assert "Quick" in shown
    plain = msgspec.json.decode((report / "report.json").read_bytes())
    assert 0 <= plain["show_once_recall1_heldout"] <= plain["show_once_recall5_heldout"] <= 1
    assert plain["setting"]["quick"] is True


def test_a_report_that_cannot_be_written_is_found_out_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("edge_ravlm.export.evaluation.suites.run", judged)
    (tmp_path / "report").touch()
    assert command(["eval", "starter", "--suite", "home", "--report", str(tmp_path / "report")]) == 1
    assert "expected a folder that can be written" in capsys.readouterr().err


def test_the_command_prints_the_same_figures_each_time(small_sets: None, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert command(["eval", "starter", "--suite", "home", "--quick", "--json"]) == 0
        printed.append(msgspec.json.decode(capsys.readouterr().out))
        assert printed[-1].pop("decode_ms_p50") > 0
    assert printed[0] == printed[1]
    assert printed[0]["quick"] is True


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["eval", str(tmp_path), "--suite", "home"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert command(["eval", "starter", "--suite", "zoo"]) == 2
    assert "easy-vqa" in capsys.readouterr().err
