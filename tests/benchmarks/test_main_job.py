"""The main job's benchmark: fair turns, honest ratios, every figure that was promised."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import fp32_peers
import main_job
import numpy as np
import pytest
from efficientnet_lite_pytorch import EfficientNet
from main_job import Size, compared, take_turns
from synthetic import QUESTION, TEXTS, pictures, teach

import edge_ravlm
from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.export.teachers.efficientnet import EfficientNetLite
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.scene import is_still

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def peers() -> dict[str, fp32_peers.Embed]:
    """Built as the benchmark builds them, around random weights: there is nothing to download."""

    def load(_: Path, variant: int, side: int) -> EfficientNetLite:
        return EfficientNetLite(EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=side)).eval()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fp32_peers, "package_file", lambda *_: Path("none"))
        patch.setattr(fp32_peers, "load_efficientnet_lite", load)
        return fp32_peers.peers(Bundle.open(STARTER), threads=1)


def answer(ms: float, text: str = TEXTS[0], level: Level = Level.RETRIEVED) -> Answer:
    return Answer(text, 0.9, level, (), Latency({"encode": ms / 2}, ms, 100.0), 0.0)


class Recorder:
    """Stands for a pipeline; notes who was asked about which frame."""

    def __init__(self, name: str, log: list[tuple[int, str]], level: Level = Level.RETRIEVED) -> None:
        self.name, self.log, self.level = name, log, level

    def ask(self, frame: Frame, _: str) -> Answer:
        self.log.append((frame.index, self.name))
        return answer(1.0, level=self.level)


def recorders(log: list[tuple[int, str]], level: Level = Level.RETRIEVED) -> dict[str, Ravlm]:
    return {name: cast(Ravlm, Recorder(name, log, level)) for name in ("a", "b", "c")}


def test_every_figure_is_printed(
    peers: dict[str, fp32_peers.Embed], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Size(rounds=2, starts=1, entries=200, queries=10, opens=1)
    monkeypatch.setattr(fp32_peers, "peers", lambda *_: peers)
    monkeypatch.setattr(main_job, "QUICK", tiny)
    monkeypatch.setattr(main_job, "WARM_UP_ROUNDS", 1)
    monkeypatch.setattr(main_job, "TAUGHT_EACH", 1)
    monkeypatch.setattr(sys, "argv", ["main_job.py", "--quick", "--json"])
    assert main_job.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    figures: dict[str, Any] = json.loads(line)
    assert figures["quick"] is True
    for name in ("retrieved", "torch_eager", "ort_fp32"):
        spent = figures[f"{name}_ms"]
        assert 0 < spent["p50"] <= spent["p99"]
        if name != "retrieved":
            ratio = spent["p50"] / figures["retrieved_ms"]["p50"]
            assert figures[f"ratio_vs_{name}"] == pytest.approx(ratio, abs=1e-3)
    assert {"preprocess", "encode", "vote"} <= set(figures["stages_p50_ms"])
    assert figures["import_s"] > 0
    assert figures["start_to_first_answer_s"] > 0
    assert 30 < figures["rss_mb"] < 300
    assert figures["memory_100k"]["entries"] == 200
    assert {"open_ms", "p99_ms", "recall10"} <= set(figures["memory_100k"])
    assert 0 <= figures["others_cpu_share"] <= 1
    assert {"machine", "libraries", "threads", "precision", "bundle_sha256", "quality"} <= set(figures)


def test_both_peers_compute_the_same_and_run_inside_the_same_pipeline(
    peers: dict[str, fp32_peers.Embed], tmp_path: Path
) -> None:
    bundle = Bundle.open(STARTER)
    shown = pictures(4, seed=5)
    inputs = [bundle.manifest.preprocess(Frame(picture)) for picture in shown]
    for pixels in inputs:
        ours, theirs = peers["torch_eager"](pixels), peers["ort_fp32"](pixels)
        assert ours.shape == (bundle.manifest.image_space.dim,)
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    peer = fp32_peers.Peer(
        bundle, tmp_path / "peer", flavor="cpu-u8", budget_ms=10_000, threads=1, embed=peers["ort_fp32"]
    )
    with peer:
        id_ = peer.remember(shown[0], TEXTS[0])
        stored = peer.memory.vectors("image", [id_])[0]
        assert 0.9 < stored @ peers["ort_fp32"](inputs[0]) < 1.001, "what is taught is looked at more than once"
        assert peer.ask(shown[2], QUESTION).level is Level.RETRIEVED


def test_everyone_sees_every_frame_and_goes_first_in_turn() -> None:
    log: list[tuple[int, str]] = []
    answers = take_turns(recorders(log), 6, lambda: None)
    assert [len(given) for given in answers.values()] == [6, 6, 6]
    rounds = [[name for index, name in log if index == n] for n in range(6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert [names[0] for names in rounds] == ["a", "b", "c", "a", "b", "c"]


def test_an_answer_that_was_not_retrieved_is_not_timed() -> None:
    with pytest.raises(EdgeRavlmError, match="level cached"):
        take_turns(recorders([], Level.CACHED), 1, lambda: None)


def test_a_ratio_above_one_means_that_ours_is_faster() -> None:
    figures = compared(
        {
            "retrieved": [answer(2.0), answer(4.0)],
            "slow": [answer(9.0), answer(9.0, TEXTS[1])],
            "fast": [answer(1.5)] * 2,
        }
    )
    assert figures["retrieved_ms"]["p50"] == 3.0
    assert (figures["ratio_vs_slow"], figures["ratio_vs_fast"]) == (3.0, 0.5)
    assert figures["answered_alike"] == 0.5
    assert figures["stages_p50_ms"] == {"encode": 1.5}


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
