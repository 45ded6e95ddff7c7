"""The doctor: on a healthy machine all is well, on a broken one it says what is not and goes on."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from edge_ravlm import bundle
from edge_ravlm.runtime import doctor


def by_name() -> dict[str, doctor.Finding]:
    findings = doctor.examine()
    assert len({finding.what for finding in findings}) == len(findings)
    return {finding.what: finding for finding in findings}


def test_a_healthy_machine_is_found_well() -> None:
    found = by_name()
    assert all(finding.ok for finding in found.values()), found
    assert set(found) == {"python", "packages", "cpu", "video", "disk", "starter", "answer"}
    assert platform.python_version() in found["python"].found
    assert "onnxruntime" in found["packages"].found
    assert "'the lamp is on'" in found["answer"].found
    assert not any(finding.advice for finding in found.values())


def test_a_missing_package_is_named_and_the_rest_is_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("edge-ravlm", "no-such-package"))
    found = by_name()
    assert not found["packages"].ok
    assert "no-such-package" in found["packages"].found
    assert found["packages"].advice
    assert found["answer"].ok


def test_a_damaged_starter_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "starter"
    shutil.copytree(bundle.starter_path(), copy)
    victim = copy / "tokenizer.json"
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.write_bytes(bytes(data))
    monkeypatch.setattr(bundle, "starter_path", lambda: copy)
    found = by_name()
    for name in ("starter", "answer"):
        assert not found[name].ok
        assert "tokenizer.json" in found[name].found
        assert found[name].advice
    assert found["packages"].ok


def test_whatever_else_goes_wrong_is_a_finding_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("no version here")

    monkeypatch.setattr(platform, "python_version", broken)
    found = by_name()
    assert not found["python"].ok
    assert found["python"].found == "RuntimeError: no version here"
    assert found["answer"].ok


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total - 1000, 1000))
    finding = by_name()["disk"]
    assert not finding.ok
    assert finding.advice
