"""The main job's benchmark: every figure that was promised, of answers that were worked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import main_job
import pytest
import synthetic
from main_job import Size, answers_to, spent
from synthetic import QUESTION, TEXTS, pictures, teach

import edge_ravlm
from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.scene import is_still


def answer(ms: float, text: str = TEXTS[0], level: Level = Level.RETRIEVED) -> Answer:
    return Answer(text, 0.9, level, (), Latency({"encode": ms / 2}, ms, 100.0), 0.0)


class Recorder:
    """Stands for a pipeline; notes which frames it was asked about."""

    def __init__(self, level: Level = Level.RETRIEVED) -> None:
        self.asked: list[int] = []
        self.level = level

    def ask(self, frame: Frame, _: str) -> Answer:
        self.asked.append(frame.index)
        return answer(1.0 + frame.index, level=self.level)


def test_every_figure_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Size(rounds=2, starts=1)
    monkeypatch.setattr(main_job, "QUICK", tiny)
    monkeypatch.setattr(main_job, "WARM_UP_ROUNDS", 1)
    monkeypatch.setattr(synthetic, "TAUGHT_EACH", 1)
    monkeypatch.setattr(sys, "argv", ["main_job.py", "--quick", "--json"])
    assert main_job.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    figures: dict[str, Any] = json.loads(line)
    assert figures["quick"] is True
    assert 0 < figures["retrieved_ms"]["p50"] <= figures["retrieved_ms"]["p99"]
    assert figures["p99_over_p50"] >= 1
    assert 0 <= figures["second_looks"] <= 1
    assert {"preprocess", "encode", "vote"} <= set(figures["stages_p50_ms"])
    assert figures["import_s"] > 0
    assert figures["start_to_first_answer_s"] > 0
    assert 30 < figures["rss_mb"] < 300
    assert 0 <= figures["others_cpu_share"] <= 1
    assert {"machine", "libraries", "threads", "precision", "bundle_sha256", "quality"} <= set(figures)


def test_frames_that_warm_up_do_not_count() -> None:
    recorder = Recorder()
    answers = answers_to(cast(Ravlm, recorder), 3, lambda: None)
    assert recorder.asked == list(range(-main_job.WARM_UP_ROUNDS, 3))
    assert [answer.latency.total_ms for answer in answers] == [1.0, 2.0, 3.0]


def test_an_answer_that_was_not_retrieved_is_not_timed() -> None:
    with pytest.raises(EdgeRavlmError, match="level cached"):
        answers_to(cast(Ravlm, Recorder(Level.CACHED)), 1, lambda: None)


def test_medians_of_the_whole_and_of_its_stages() -> None:
    figures = spent([answer(2.0), answer(4.0), answer(9.0)])
    assert figures["retrieved_ms"]["p50"] == 4.0
    assert figures["stages_p50_ms"] == {"encode": 2.0}


def test_pictures_change_so_that_every_one_has_to_be_looked_at() -> None:
    preprocess = Bundle.open(STARTER).manifest.preprocess
    shown = pictures(6, seed=6)
    assert {picture.shape for picture in shown} == {(720, 1280, 3)}
    inputs = [preprocess(Frame(picture)) for picture in shown]
    for n in range(len(inputs)):
        assert not any(is_still(inputs[n], other) for other in inputs[:n])


def test_the_product_tells_the_two_scenes_apart() -> None:
    with edge_ravlm.load(STARTER, budget_ms=10_000, threads=1) as ravlm:
        teach(ravlm)
        for n, picture in enumerate(pictures(6, seed=7)):
            assert ravlm.ask(picture, QUESTION).text == TEXTS[n % 2]


def test_a_process_that_fails_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "not-a-memory").mkdir()
    (tmp_path / "not-a-memory" / "other.txt").write_text("x")
    with pytest.raises(EdgeRavlmError, match="not-a-memory"):
        main_job.starting(tmp_path / "not-a-memory", tmp_path / "none.png", times=1)
