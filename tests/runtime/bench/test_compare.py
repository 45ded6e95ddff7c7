"""Comparing two results: what is slower or worse is told from noise, and from a machine that was slower."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import DataError
from edge_ravlm.runtime.bench.compare import Change, compare, differences
from edge_ravlm.runtime.bench.meter import Spent
from edge_ravlm.runtime.bench.outcome import Outcome, Record, read, write

QUESTIONS = 60


def result(
    *, slower: float = 1.0, machine: float = 1.0, wrong: int = 0, seed: int = 0, scenario: str = "single-stream"
) -> Outcome:
    """Answers of about 10 ms, each question three times, with noise of a tenth; of them the first ``wrong`` wrong."""
    rng = np.random.default_rng(seed)
    records = [
        Record(
            f"gate@{row}",
            ms=machine * slower * noise * (8 + row / 15),
            yardstick_ms=machine * 1.0,
            level="retrieved",
            right=row >= wrong,
            stages_ms={"encode": machine * slower * noise * 8, "vote": machine * 0.3 * noise},
        )
        for row in range(QUESTIONS)
        for noise in rng.lognormal(0, 0.1, 3).tolist()
    ]
    spent = Spent(1.0, 1.0, 100.0, 50.0, None, "nothing")
    return Outcome(
        scenario=scenario,
        valid=True,
        because="",
        setting={"threads": 2},
        quality={},
        figures={},
        records=records,
        spent=spent,
    )


def changes(before: Outcome, after: Outcome, tolerance: float = 0.05) -> dict[str, Change]:
    return {change.figure: change for change in compare(before, after, tolerance)}


def test_noise_is_no_change() -> None:
    found = changes(result(seed=0), result(seed=1))
    assert set(found) == {"latency", "encode", "vote", "accuracy"}
    assert not any(change.worse for change in found.values())
    assert all(change.low < 1 < change.high for name, change in found.items() if name != "accuracy")


def test_a_slower_stage_is_named_and_the_others_are_not() -> None:
    found = changes(result(), result(slower=1.3, seed=1))
    assert {name for name, change in found.items() if change.worse} == {"latency", "encode"}
    assert found["encode"].low < 1.3 < found["encode"].high


def test_a_slower_machine_is_no_change_of_ours() -> None:
    assert not any(change.worse for change in changes(result(), result(machine=2.0, seed=1)).values())


def test_a_change_within_the_tolerance_goes_unnoticed() -> None:
    assert not changes(result(), result(slower=1.2, seed=1), tolerance=0.5)["latency"].worse


def test_more_wrong_answers_are_worse_even_if_they_come_faster() -> None:
    found = changes(result(), result(slower=0.5, wrong=20, seed=1))
    assert {name for name, change in found.items() if change.worse} == {"accuracy"}


def test_only_like_is_compared_with_like() -> None:
    with pytest.raises(DataError, match="expected two of scenario single-stream"):
        compare(result(), result(scenario="camera"))
    few = msgspec.structs.replace(result(), records=result().records[:9])
    with pytest.raises(DataError, match="20 questions or more"):
        compare(result(), few)


def test_what_differs_in_the_settings_is_said() -> None:
    other = msgspec.structs.replace(result(), setting={"threads": 1, "flavor": "cpu-u8"})
    assert differences(result(), other) == ["threads: 2 -> 1", 'flavor: nothing -> "cpu-u8"']


def test_a_result_survives_its_file_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(write(result()))
    assert read(path) == result()
    path.write_bytes(b'{"scenario": 1}')
    with pytest.raises(DataError, match="edge-ravlm bench"):
        read(path)
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none.json")


def test_the_command_fails_where_it_became_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_bytes(write(result()))
    after.write_bytes(write(result(slower=2.0, seed=1)))
    assert command(["bench", "compare", str(before), str(after)]) == 1
    assert "worse" in capsys.readouterr().out
    assert command(["bench", "compare", str(after), str(before)]) == 0
