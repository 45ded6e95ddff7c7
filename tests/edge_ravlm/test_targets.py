"""Target profiles: every one usable, its figures consistent with each other and sourced, contradictions refused."""

from __future__ import annotations

import re
from importlib.resources import files as package_files
from typing import Any

import msgspec
import pytest

from edge_ravlm.errors import UsageError
from edge_ravlm.targets import FIGURES, Target, target, targets

PROFILES = targets()
ON_GPU = [name for name, profile in PROFILES.items() if profile.engine]


def contradict(name: str, **changes: Any) -> Target:
    return msgspec.convert({**msgspec.to_builtins(PROFILES[name]), **changes}, Target)


def test_the_promised_targets_are_there() -> None:
    jetsons = ["jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor"]
    assert list(PROFILES) == ["cpu-x86", "cpu-arm64", *jetsons, "rtx-20", "rtx-30", "rtx-40", "rtx-50"]
    assert all(profile.name == name for name, profile in PROFILES.items())


def test_orin_nano_super_as_its_maker_publishes_it() -> None:
    nano = target("jetson-orin-nano")
    assert (nano.flavor, nano.engine, nano.compute_capability) == ("trt-s8", "tensorrt", "8.7")
    assert (nano.int8_tops, nano.fp16_tflops, nano.bandwidth_gb_s, nano.memory_mb) == (33, 17, 102, 8000)
    assert (nano.tensorrt, nano.cuda, nano.python) == ("10.3", "12.6", "3.10")


def test_one_bundle_serves_every_geforce_family() -> None:
    families = {"rtx-20": "7.5", "rtx-30": "8.6", "rtx-40": "8.9", "rtx-50": "12.0"}
    assert {name: PROFILES[name].compute_capability for name in families} == families
    assert all(PROFILES[name].engine_compute_capabilities == tuple(families.values()) for name in families)


def test_only_what_the_tests_run_on_counts_as_verified() -> None:
    assert [name for name, profile in PROFILES.items() if profile.verified == "tests in CI"] == ["cpu-x86"]


@pytest.mark.parametrize("name", ON_GPU)
def test_figures_of_a_gpu_are_dense_and_in_their_units(name: str) -> None:
    profile = PROFILES[name]
    int8, fp16, fp32, bandwidth, memory = (getattr(profile, figure) for figure in FIGURES)
    assert int8 / fp16 == pytest.approx(2, rel=0.05)  # 4 would be a sparse figure beside a dense one
    assert 1 < fp16 / fp32 < 50
    assert 50 < bandwidth < 5_000
    assert 4_000 <= memory <= 200_000


@pytest.mark.parametrize("name", ON_GPU)
def test_every_gpu_profile_names_its_source(name: str) -> None:
    text = (package_files("edge_ravlm") / "targets.toml").read_text(encoding="utf-8")
    (comment,) = re.findall(rf"((?:^#.*\n)+)\[{name}\]\n", text, re.MULTILINE)
    assert re.search(r"https://|whitepaper", comment)


@pytest.mark.parametrize("name", ["cpu-x86", "cpu-arm64"])
def test_processors_are_measured(name: str) -> None:
    profile = PROFILES[name]
    assert profile.measured
    assert profile.flavor == "cpu-u8"
    assert all(getattr(profile, figure) is None for figure in FIGURES)


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("cpu-x86", {"int8_tops": 1.0}, "either measured, or all of"),
        ("rtx-40", {"bandwidth_gb_s": None}, "either measured, or all of"),
        ("rtx-40", {"flavor": "cpu-u8"}, "come together"),
        ("rtx-40", {"compute_capability": ""}, "come together"),
        ("cpu-x86", {"engine": "tensorrt"}, "come together"),
        ("rtx-40", {"engine_compute_capabilities": ["7.5"]}, "no engine for its own compute capability 8.9"),
        ("jetson-thor", {"tensorrt": ""}, "tensorrt says which line"),
        ("rtx-40", {"int8_tops": 0}, "> 0"),
        ("rtx-40", {"compute_capability": "sm_89"}, "matching regex"),
        ("rtx-40", {"estimated": ["price"]}, "Invalid enum value"),
        ("rtx-40", {"verified": "yes"}, "Invalid enum value"),
        ("rtx-40", {"tdp_w": 450}, "unknown field"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(name: str, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=re.escape(complaint)):
        contradict(name, **changes)


def test_an_unknown_target_gets_the_known_ones_in_one_sentence() -> None:
    with pytest.raises(UsageError) as caught:
        target("jetson-nano")
    assert str(caught.value) == (
        f"target 'jetson-nano': expected one of {', '.join(PROFILES)}, got an unknown name; "
        "choose the one that is nearest to your device."
    )
