"""The report on figures that were not measured: what is promised, what was missed, what a part that fails does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import report
from report import AIMS, Aim, Part

OURS = {"p50_ms": 10.0, "p99_ms": 15.0, "stages_p50_ms": {"encode": 8.0}}
PEERS = {
    "ratio_vs_textbook_p50": 50.0,
    "ratio_vs_clip_ort_p50": 10.0,
    "ours": {"retrieved": OURS},
    "peers": {name: {"stages_p50_ms": {"image": 90.0}} for name in ("textbook", "clip_ort")},
}
FIGURES: dict[str, dict[str, Any]] = {
    "peers": PEERS,
    "limits": {"encoder_over_floor": 1.7, "kinds": [{"kind": "depthwise", "ms": 2.5}]},
    "main_job": {"p99_over_p50": 1.5, "stages_p50_ms": {"encode": 2.0}, "start_to_first_answer_s": 0.6},
    "memory": {"memory_1m": {"open_ms": 12.0, "recall10": 0.995, "p99_ms": 5.0, "anon_fraction": 0.01}},
}


def part(name: str, figures: object) -> Part:
    return Part(name, (sys.executable, "-c", f"print({msgspec.json.encode(figures).decode()!r})"), quick=())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on those figures: exit code, report, page, and what was said on both streams."""

    def command(parts: list[Part], *more: str) -> tuple[int, dict[str, Any], str, str]:
        monkeypatch.setattr(report, "PARTS", tuple(parts))
        monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "out"), *more])
        code = report.main()
        files = [tmp_path / "out" / name for name in ("report.json", "report.md")]
        read = [file.read_text(encoding="utf-8") if file.is_file() else "{}" for file in files]
        said = capsys.readouterr()
        return code, json.loads(read[0]), read[1], said.out + said.err

    return command


def test_what_is_promised_stands_at_the_top(run: Any) -> None:
    code, found, _, said = run([part(name, figures) for name, figures in FIGURES.items()])
    assert code == 0
    assert found["ratio_vs_textbook_p50"] == 50.0
    assert found["p99_over_p50"] == 1.5
    assert found["encoder_over_floor"] == 1.7
    assert found["memory_1m"] == {"open_ms": 12.0, "recall10": 0.995, "p99_ms": 5.0, "anon_fraction": 0.01}
    assert found["start_to_first_answer_s"] == 0.6
    assert found["quick"] is False
    assert "goal" in said
    assert "missed: 1.50 times off" in said
    assert "missed: 2.00 times off" in said


def test_what_is_missed_is_explained_by_what_it_is_made_of(run: Any) -> None:
    _, _, page, _ = run([part("peers", PEERS)])
    (line,) = [line for line in page.splitlines() if line.startswith("- `ratio_vs_clip_ort_p50`")]
    assert "encode 8" in line
    assert "image 90" in line
    assert "- `ratio_vs_textbook_p50`" not in page


def test_a_short_form_leaves_out_what_it_did_not_measure_and_says_what_it_is(run: Any) -> None:
    code, found, page, said = run([part("memory", {"sizes": {}})], "--quick")
    assert (code, found["quick"]) == (0, True)
    assert found["memory_1m"] == dict.fromkeys(("open_ms", "recall10", "p99_ms", "anon_fraction"))
    assert "not to be quoted" in page
    assert "None of these figures may be quoted" in said


def test_a_part_that_fails_is_named_and_nothing_is_written(run: Any) -> None:
    code, found, _, said = run([Part("peers", (sys.executable, "-c", "raise SystemExit(3)"), quick=())])
    assert (code, found) == (1, {})
    assert "part 'peers': expected figures, got exit code 3" in said


@pytest.mark.parametrize(
    ("more", "value", "verdict"),
    [
        (True, 40.0, "goal"),
        (True, 39.0, "accepted"),
        (True, 12.5, "missed: 2.00 times off"),
        (False, 20.0, "goal"),
        (False, 25.0, "accepted"),
        (False, 75.0, "missed: 3.00 times off"),
    ],
)
def test_verdicts(more: bool, value: float, verdict: str) -> None:
    accept, goal = (25.0, 40.0) if more else (25.0, 20.0)
    assert Aim("x", ("part", "x"), accept, goal, more, "x").verdict(value) == verdict


def test_every_aim_is_of_a_part_that_is_run() -> None:
    assert {aim.where[0] for aim in AIMS} <= {one.name for one in report.PARTS}
