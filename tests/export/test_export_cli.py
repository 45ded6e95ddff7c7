"""`edge-ravlm export` as a user meets it: what is wrong is said in one sentence, before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_ravlm.cli import run

pytestmark = pytest.mark.export


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("starter",), 2, "--target"),
        (("starter", "--target", "toaster", "-o", "{tmp}/out"), 2, "jetson-orin-nano"),
        (("{tmp}/none.toml", "--target", "cpu-x86", "-o", "{tmp}/out"), 1, "smart-home"),
        (("{tmp}/bad.toml", "--target", "cpu-x86", "-o", "{tmp}/out"), 1, "imagse"),
        (("starter", "--target", "cpu-x86", "-o", "{tmp}"), 1, "new or empty"),
        (("smart-home", "--target", "cpu-x86", "-o", "{tmp}/out"), 1, "pictures"),
    ],
)
def test_whatever_is_wrong_is_said_in_one_sentence(
    arguments: tuple[str, ...], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text('name = "x"\n[imagse]\n')
    assert run(["export", *(argument.format(tmp=tmp_path) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
