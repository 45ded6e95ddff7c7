"""Floors are floors, the profile knows every node, and every stage stands beside what it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import encoder_layers
import limits
import machine_floors
import numpy as np
import pytest

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.export.yardsticks import Product

pytestmark = pytest.mark.export

TINY = limits.Size(repeats=1, rounds=2, looks=2, buffer=8_000_000, pages=64, frames=2, entries=64)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "QUICK", TINY)
        patch.setattr(machine_floors, "SHAPES", ((64, 64, 64), (96, 64, 32)))
        return limits.measure(quick=True)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [np.int8, np.float32])
def test_what_is_timed_is_the_product(kind: type[np.int8 | np.float32], threads: int) -> None:
    product = Product(kind, (300, 210, 96), threads)
    expected = product.left.astype(np.int64) @ product.right.astype(np.int64)
    np.testing.assert_array_equal(product.run(), expected)
    assert product.operations == 2 * 300 * 210 * 96


def test_the_fastest_of_the_shapes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_floors, "rate", lambda product, _: 1 / len(product.left))
    chosen = machine_floors.fastest_product("int8", 1, 1, ((32, 8, 8), (16, 8, 8), (64, 8, 8)))
    assert chosen.left.shape == (16, 8)


def test_every_first_touch_of_the_process_s_own_pages_is_a_fault(tmp_path: Path) -> None:
    costs = machine_floors.page_faults(512, tmp_path)
    assert costs["anonymous"]["pages"] == costs["file"]["pages"] == 512
    assert 512 <= costs["anonymous"]["faults"] < 540
    assert 0 < costs["file"]["faults"] <= 540, "the kernel may map several pages at once"
    assert not list(tmp_path.iterdir())


def test_what_was_touched_before_costs_no_fault() -> None:
    pages = np.ones(256 * 4096, np.uint8)
    assert machine_floors.touch(pages, write=True).faults < 20


def test_bytes_read_once_and_copied_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_floors, "seconds", lambda _: 0.5)
    assert machine_floors.bandwidth_gb_s(1_000_000, 1, 1) == {"read": 0.002, "copy": 0.004}


def test_every_figure_that_was_promised_is_there(found: dict[str, Any]) -> None:
    for key in ("int8_1_thread", "int8_2_threads", "fp32_1_thread", "fp32_2_threads"):
        assert found["gemm_gop_s"][key] > 0
    assert all(figure > 0 for of in found["bandwidth_gb_s"].values() for figure in of.values())
    assert found["encoder_over_floor"] == found["encoder"]["over_floor"]
    assert found["accepted"] == (found["encoder_over_floor"] <= 1.8)
    assert {"machine", "threads", "precision", "quality", "others_cpu_share", "quick"} <= set(found)


def test_every_stage_of_an_answer_has_a_floor(found: dict[str, Any]) -> None:
    stages = {row["stage"]: row for row in found["stages"]}
    counted = {"preprocess", "compare", "encode", "second_look", "search", "vote", "prefill", "decode"}
    assert set(stages) == {*counted, "between stages"}
    assert stages["between stages"]["floor_ms"] is None
    for name in counted:
        assert stages[name]["over_floor"] == pytest.approx(stages[name]["ms"] / stages[name]["floor_ms"], rel=0.1)
    assert stages["preprocess"]["mb"] == pytest.approx((1280 * 720 + 224 * 224) * 3e-6, abs=1e-3)
    assert stages["second_look"]["gmac"] < stages["encode"]["gmac"] == found["encoder"]["gmac"]


def test_the_profile_explains_every_multiply_add_of_the_convolutions(found: dict[str, Any]) -> None:
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1, abs=0.01)
    convolutions = [row for kind, row in kinds.items() if kind.endswith(("convolution", "convolutions"))]
    assert sum(row["gmac"] for row in convolutions) == pytest.approx(found["encoder"]["gmac"], rel=0.01)
    for kind in ("first convolution", "depthwise convolutions", "pointwise convolutions", "head of meaning"):
        assert kinds[kind]["lost_ms"] == pytest.approx(kinds[kind]["ms"] - kinds[kind]["floor_ms"], abs=0.002)
    assert sum(row["nodes"] for row in kinds.values()) == len(found["layers"])


def test_nodes_are_told_apart_by_the_outputs_that_they_are_for() -> None:
    encoder = limits.Encoder.of(Bundle.open(STARTER))
    model = limits.onnx.load_model_from_string(encoder.model)
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    kinds = encoder_layers.Kinds(model, {"image": (1, 224, 224, 3)})
    assert kinds.of("tokens_dq3", "DequantizeLinear") == ("quantize and dequantize", 0)
    assert kinds.of("fused attention", "Flatten")[0] == "head of attention"
    assert kinds.of("fused pooling0.mean", "MatMul")[0] == "head of embedding, extent, meaning"
    assert kinds.of("nobody's", "MatMul") == ("other", 0)


def test_the_command_prints_one_json_object(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "measure", lambda quick: {**found, "quick": quick})
    monkeypatch.setattr(sys, "argv", ["limits.py", "--json", "--quick"])
    assert limits.main() == 0
    assert json.loads(capsys.readouterr().out)["quick"] is True
    monkeypatch.setattr(sys, "argv", ["limits.py"])
    assert limits.main() == 0
    shown = capsys.readouterr().out
    assert "times its INT8 floor" in shown
    assert "second_look" in shown
