"""Growth curves: fits find the law that made the points, points count what they say, the picture is drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import growth
import numpy as np
import pytest
from fits import fitted
from synthetic import pictures

pytestmark = pytest.mark.export  # it draws

X = np.array([1_000, 3_000, 10_000, 30_000, 100_000], np.float64)


@pytest.mark.parametrize("exponent", [-0.5, 0.17, 0.5, 2.0])
def test_a_power_is_found(exponent: float) -> None:
    fit = fitted(X, 0.3 * X**exponent)
    assert (fit.model, fit.rate) == ("power", pytest.approx(exponent))
    assert fit.offset == pytest.approx(0.3)
    assert fit.r2 == pytest.approx(1)
    assert fit.grows == pytest.approx(100**exponent)


def test_a_line_is_found() -> None:
    fit = fitted(X, 2 + 5e-3 * X)
    assert (fit.model, fit.rate, fit.offset) == ("linear", pytest.approx(5e-3), pytest.approx(2))
    assert fit.says("entry", "ms") == "0.005 ms per entry, from 2 ms"
    assert fit.row("entry", "ms")["slope_unit"] == "ms per entry"


def test_noise_costs_r2_but_not_the_exponent() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.1, 200))
    x = np.geomspace(1, 1e4, 200)
    fit = fitted(x, 3 * x**0.4 * noise)
    assert fit.rate == pytest.approx(0.4, abs=0.02)
    assert 0.9 < fit.r2 < 0.999


def test_what_does_not_grow_is_called_flat() -> None:
    assert fitted(X, np.full(5, 150.0)).says("entry", "MB") == "flat (1.00 times over the range)"
    assert fitted(X, np.full(5, 150.0)).r2 == 1


def test_a_line_that_falls_below_zero_is_no_law() -> None:
    x = np.array([1.0, 10, 100, 1_000, 100_000])
    assert fitted(x, x**-1.0).model == "power"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growth") / "taught.memory"
    growth._teach(folder)
    return folder


@pytest.fixture(scope="module")
def found(taught: Path) -> dict[str, Any]:
    """Two points of each axis, taken in this process."""
    folders = {count: growth.built(taught.with_name(f"{count}.memory"), count) for count in (50, 200)}
    axes = {
        "memory": [growth.searching(count, folder, 3) for count, folder in folders.items()],
        "image": [growth.looking(side, taught, 2) for side in ((320, 180), (640, 360))],
        "length": [growth.writing(count, 2) for count in (1, 3)],
        "watches": [growth.watching(count, taught, 2) for count in (1, 3)],
    }
    return {name: growth._described(growth.AXES[name], points) for name, points in axes.items()}


def test_points_are_where_they_say(found: dict[str, Any]) -> None:
    places = {name: [point["x"] for point in axis["points"]] for name, axis in found.items()}
    assert places == {"memory": [50, 200], "image": [0.0576, 0.2304], "length": [1, 3], "watches": [1, 3]}


def test_every_series_is_measured_and_fitted_with_units(found: dict[str, Any]) -> None:
    for name, axis in growth.AXES.items():
        for figure in (*axis.series, "rss_mb"):
            assert all(point[figure] > 0 for point in found[name]["points"])
            fit = found[name]["fits"][figure]
            assert fit["model"] in ("linear", "power")
            assert {"r2", "says"} < set(fit)
        assert all(point["anonymous_mb"] < point["rss_mb"] for point in found[name]["points"])


def test_a_memory_that_is_there_is_not_built_again(taught: Path) -> None:
    assert growth.built(taught, 10**9) == taught


def test_each_point_has_a_process_of_its_own() -> None:
    assert growth.fresh(_process) != _process()


def _process() -> int:
    import os

    return os.getpid()


def test_sixteen_watches_have_sixteen_regions() -> None:
    tiles = growth._tiles(1280, 720)
    assert len(set(tiles)) == 16
    assert {tile.crop(pictures(1, seed=0)[0]).shape for tile in tiles} == {(180, 320, 3)}


def test_the_command_prints_one_json_object_and_draws_four_panels(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {**found, "others_cpu_share": 0.0, **growth.setting(growth.Bundle.open("starter"), "cpu-u8", 2)}
    monkeypatch.setattr(growth, "measure", lambda quick, largest: {**whole, "quick": quick, "largest": largest})
    monkeypatch.setattr(sys, "argv", ["growth.py", "--json", "--quick", "--plot", str(tmp_path / "x.png")])
    assert growth.main() == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["quick"], said["largest"]) == (True, False)
    drawn = cv2.imread(str(tmp_path / "x.png"))
    assert drawn is not None
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 2
    assert all(drawn[y : y + height, x : x + width].std() > 5 for y in (0, height) for x in (0, width)), "four panels"
    monkeypatch.setattr(sys, "argv", ["growth.py"])
    assert growth.main() == 0
    assert "tokens" in capsys.readouterr().out
