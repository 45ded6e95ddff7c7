"""Recipes: every one that ships is valid, and a mistake in one's own is named."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.export.recipe import read_recipe
from edge_ravlm.export.students import STUDENTS
from edge_ravlm.export.teachers import IMAGE_FAMILIES, TEXT_FAMILIES

pytestmark = pytest.mark.export

SHIPPED = sorted(path.stem for path in Path(str(files("edge_ravlm.export"))).glob("recipes/*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_recipes_that_ship_are_valid_and_name_things_that_exist(name: str) -> None:
    recipe, data = read_recipe(name)
    assert recipe.name == name
    assert recipe.student.kind in STUDENTS
    assert recipe.teacher.image.partition(":")[0] in {"", *IMAGE_FAMILIES}
    assert recipe.teacher.text.partition(":")[0] in TEXT_FAMILIES
    assert data.startswith(b"#")


def test_the_ones_that_docs_name_are_there() -> None:
    assert {"starter", "smart-home", "traffic", "clip-to-edge"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\n[imges]\n', "imges"),
        ('name = "x"\n[images]\ncalibration = 3\n', "calibration"),
        ('name = "x"\n[images]\nheld_out = 1.5\n', "held_out"),
        ('name = "x y"\n', "name"),
        ('name = "x"\n[student]\nside = 8\n', "side"),
        ('name = "x"\n[distil]\nrate = "fast"\n', "rate"),
        ('name = "x"\n[student]\nkind = "resnet-9000"\n', "resnet-9000.*auto, efficientnet-lite0"),
        ('name = "x"\n[images]\ncaptions = "c.csv"\n[text]\ndim = 64\n', r"text\.dim 64"),
        ('name = "x"\n[images]\ncaptions = "c.csv"\n', "scenes.*have none"),
        ('name = "x"\n[images]\nsource = "p"\ncaptions = "c.csv"\n', r"teacher\.image"),
        ('name = "x"\n[student]\nside = 128\n[closer]\nscenes = 9\n', r"closer\.side 160, .* smaller than .* 128"),
        ('name = "x"\n[student]\nkind = "auto"\n[closer]\nscenes = 9\n', r"closer\.side 160, .* smaller than .* 128"),
        ('name = "x"\n[closer]\nscenes = 9\nstudied = [0.5]\n', r"closer\.studied"),
        ('name = "x"\n[fusion]\nheads = 5\n', r"fusion\.width 192, which 5 heads"),
        ('name = "x"\n[fusion]\nentries = 2000\n', r"fusion\.entries"),
        ("name = \n", "valid recipe"),
        ("[images]\n", "name"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_recipe(path)


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="starter"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="valid recipe"):
        read_recipe(tmp_path / "bytes.toml")


def test_an_own_file_comes_before_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("starter").write_text('name = "mine"\n')
    assert read_recipe("starter")[0].name == "mine"
