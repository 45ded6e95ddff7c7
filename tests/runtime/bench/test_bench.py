"""``edge-ravlm bench`` with the real LoadGen on the real starter, for as short as it goes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import msgspec
import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.cli import run as command
from edge_ravlm.errors import EdgeRavlmError, StorageError, UsageError
from edge_ravlm.frames import Region
from edge_ravlm.runtime.answer import Answer, Latency, Level
from edge_ravlm.runtime.bench import loadgen, outcome
from edge_ravlm.runtime.bench.loadgen import Rules, play
from edge_ravlm.runtime.bench.report import others
from edge_ravlm.runtime.bench.running import Wish, run
from edge_ravlm.runtime.bench.workload import Sample, Workload, yard

SHORT = Rules(seconds=0.5, quick=True)
SAMPLES = [Sample(f"thing@{n}", n, "is it there?", Region.box(0, 0, 1, 1), "yes") for n in range(8)]


def one(sample: Sample) -> Answer:
    """In two milliseconds; every second sample wrong."""
    time.sleep(0.002)
    words = "yes" if sample.frame % 2 else "no"
    return Answer(words, 0.9, Level.RETRIEVED, (), Latency({"look": 1.0}, 2.0, 100.0), 0.0)


def answered(samples: Sequence[Sample]) -> Iterator[Answer]:
    return map(one, samples)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return yard()


def silent(_what: str, _total: int | None) -> object:
    from contextlib import nullcontext

    return nullcontext(lambda **_: None)


@pytest.mark.parametrize(("scenario", "streams"), [("single-stream", 1), ("multi-stream", 3), ("offline", 1)])
def test_loadgen_asks_in_every_scenario_and_judges(tmp_path: Path, scenario: loadgen.Scenario, streams: int) -> None:
    rules = Rules(seconds=0.3, streams=streams, workers=2, quick=True)
    played = play(scenario, SAMPLES, answered, rules, tmp_path, fastest_ms=1.0)
    enough = scenario != "multi-stream"  # too few queries to vouch for their 99th percentile
    assert played.valid is enough
    assert f"Result is : {'' if enough else 'IN'}VALID" in (tmp_path / "mlperf_log_summary.txt").read_text()
    assert {record.sample for record in played.records} == {sample.name for sample in SAMPLES}
    assert outcome.accuracy(played.records) == pytest.approx(0.5, abs=0.2)
    if scenario == "multi-stream":
        assert len(played.records) == streams * played.figures["query_count"]


def test_what_answering_raises_is_raised_once_loadgen_has_ended(tmp_path: Path) -> None:
    def broken(samples: Sequence[Sample]) -> Iterator[Answer]:
        for sample in samples:
            if sample.frame == 3:
                raise EdgeRavlmError("camera", expected="a picture", got="none", do="look")
            yield one(sample)

    for scenario in ("single-stream", "multi-stream"):
        with pytest.raises(EdgeRavlmError, match="expected a picture, got none"):
            play(scenario, SAMPLES, broken, replace(SHORT, streams=6), tmp_path, fastest_ms=1.0)


def test_what_comes_together_is_asked_together(tmp_path: Path) -> None:
    groups: list[int] = []

    def noted(samples: Sequence[Sample]) -> Iterator[Answer]:
        groups.append(len(samples))
        return answered(samples)

    play("multi-stream", SAMPLES, noted, replace(SHORT, streams=6), tmp_path, fastest_ms=1.0)
    assert groups[::2] == [4] * len(groups[::2])
    assert groups[1::2] == [2] * len(groups[1::2])


def test_several_streams_are_answered_rightly_from_shared_looks(tmp_path: Path, workload: Workload) -> None:
    wish = Wish("multi-stream", replace(SHORT, streams=4), threads=1)
    found = run(Bundle.open("starter"), wish, tmp_path, silent)  # type: ignore[arg-type]
    assert found.figures["levels"] == {"retrieved": 1.0}
    assert found.quality["accuracy"] > 0.9
    assert len(found.records) % 4 == 0


def test_a_run_that_loadgen_finds_too_short_is_not_valid(tmp_path: Path) -> None:
    fewer = Rules(seconds=0.05)
    assert "of at least 600 s" in fewer.shortfall
    assert not Rules().shortfall
    assert "of at least 600 s" in Rules(quick=True).shortfall
    with pytest.raises(StorageError, match="LoadGen's files"):
        loadgen.results(tmp_path / "nothing" / "there.txt")


def test_nothing_of_an_earlier_answer_is_used_again(tmp_path: Path, workload: Workload) -> None:
    found = run(Bundle.open("starter"), Wish("single-stream", SHORT, threads=1), tmp_path, silent)  # type: ignore[arg-type]
    assert found.figures["levels"] == {"retrieved": 1.0}
    assert found.quality["accuracy"] > 0.9
    assert set(found.figures["stages_ms"]) == {"preprocess", "encode", "search", "vote"}
    assert found.setting["bundle_sha256"] == Bundle.open("starter").sha256
    assert (found.valid, found.because) == (False, "0.5 s of at least 600 s")
    assert {record.sample for record in found.records} <= {sample.name for sample in workload.samples}


def test_the_camera_counts_what_came_late(tmp_path: Path) -> None:
    wish = Wish("camera", SHORT, threads=1, fps=10.0, budget_ms=2_000.0)
    found = run(Bundle.open("starter"), wish, tmp_path, silent)  # type: ignore[arg-type]
    figures = found.figures
    assert (figures["answers"], figures["lost"], figures["reordered"]) == (15, 0, 0)
    assert figures["miss_rate"] == 0.0
    assert figures["nice"] in (-10, os.getpriority(os.PRIO_PROCESS, 0)), "what it was allowed"
    unmetered = msgspec.structs.replace(found, figures={**figures, "energy_mj_per_answer": None})
    rows = others(unmetered)
    assert len(dict(rows)) == len(rows), "each is told once"
    assert {"accuracy", "answers", "miss_rate"} <= dict(rows).keys()
    assert ("energy_mj_per_answer", "not measured") in rows


def test_wishes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="fps and seconds above 0"):
        Wish("camera", SHORT, fps=0.0)
    with pytest.raises(UsageError, match="workers of 1 or more"):
        Wish("offline", Rules(workers=0))


def test_the_command_writes_a_report_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, result = tmp_path / "report", tmp_path / "deep" / "result.json"
    base = ["bench", "starter", "--quick", "--seconds", "0.5", "--threads", "1", "--report", str(folder)]
    assert command([*base, "--json", str(result)]) == 0
    shown = capsys.readouterr().out
    assert "single-stream: starter" in shown
    assert "Not a valid run: 0.5 s of at least 600 s." in shown
    assert {path.name for path in folder.iterdir()} >= {
        *("latency.png", "waterfall.png", "report.md", "result.json", "mlperf_log_summary.txt"),
    }
    assert all(cv2.imread(str(folder / name)).shape[1] > 500 for name in ("latency.png", "waterfall.png"))
    assert "not valid: 0.5 s of at least 600 s" in (folder / "report.md").read_text()
    assert outcome.read(result).records
    assert command(["bench", "compare", str(result), str(folder / "result.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["worse"] is False


def test_a_report_that_cannot_be_written_is_found_out_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert command(["bench", "starter", "--scenario", "camera", "--report", str(tmp_path / "file" / "report")]) == 1
    assert "expected a folder that can be written" in capsys.readouterr().err


def test_without_loadgen_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert command(["bench", "starter", "--quick", "--report", str(tmp_path)]) == 1
    assert 'pip install ".[bench]"' in capsys.readouterr().err
