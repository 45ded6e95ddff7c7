"""Traffic signs: what a file's name says, how it looks, and that what is held out cannot be learnt."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from edge_ravlm.errors import DataError, MissingExtra
from edge_ravlm.export.data import signs as module
from edge_ravlm.export.data.packages import cached
from edge_ravlm.export.data.signs import LONGEST, named, reduced, rendered, signs, split

pytestmark = pytest.mark.export

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="24" height="24">{}</svg>'
RED = SVG.format('<rect x="4" y="6" width="16" height="8" fill="#ff0000"/>')
NAMES = ("regulatory--stop--g1", "warning--falling-rocks--g1", "warning--falling-rocks--g2")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three signs where the real package has its own."""
    folder = tmp_path / "mapillary-signs/package/package_signs"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / f"{name}.svg").write_text(RED)
    (folder / "README.md").write_text("no sign")
    monkeypatch.setattr(module, "fetch", lambda name: tmp_path / name)
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    return folder


def test_a_name_says_what_a_sign_means() -> None:
    sign = named("warning--falling-rocks--g2")
    assert (sign.category, sign.meaning, sign.design) == ("warning", "falling rocks", "g2")
    assert sign.sentence == "warning: falling rocks"
    assert sign.facts == ("the sign means falling rocks", "it is a warning sign")
    assert named("information--tsunami-evacuation_route--g1").facts[1] == "it is an information sign"
    assert named("information--tsunami-evacuation_route--g1").meaning == "tsunami evacuation route"


@pytest.mark.parametrize("name", ["stop", "warning--stop", "warning--stop--2", "--stop--g1"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"sign '{name}': expected a name like"):
        named(name)


def test_a_sign_fills_its_picture_and_its_colour_has_no_fringe(package: Path) -> None:
    picture = rendered(package / f"{NAMES[0]}.svg")
    assert picture.shape == (LONGEST // 2, LONGEST, 4), "without the empty border"
    shown = picture[picture[..., 3] > 20]
    np.testing.assert_allclose(shown[:, :3], np.broadcast_to([0, 0, 255], (len(shown), 3)), atol=8)


def test_what_is_transparent_gives_no_colour_to_what_is_not() -> None:
    cut_out = np.zeros((40, 40, 4), np.uint8)
    cut_out[:, 1::2] = 255  # white beside black that is transparent
    for longest in (7, 90):
        small = reduced(cut_out, longest)
        assert max(small.shape[:2]) == longest
        assert (small[small[..., 3] > 10][:, :3] > 245).all()


@pytest.mark.parametrize("content", ["", "no picture", SVG.format("")])
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "warning--x--g1.svg").write_text(content)
    with pytest.raises(DataError, match="expected an SVG picture"):
        rendered(tmp_path / "warning--x--g1.svg")


def test_signs_are_rendered_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = signs()
    assert [sign.name for sign in first] == list(NAMES)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    for sign, again in zip(first, signs(), strict=True):
        assert sign.name == again.name
        np.testing.assert_array_equal(sign.pixels, again.pixels)
    (package / f"{NAMES[0]}.svg").unlink()
    with pytest.raises(DataError, match="expected 2 pictures, got 3; delete that file"):
        signs()


def test_without_the_renderer_the_message_says_what_to_install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"\.\[export\]"):
        signs()


def many() -> list[str]:
    """40 meanings, the even ones with three designs, every tenth in two categories."""
    meanings = [f"meaning-{number}" for number in range(40)]
    found = [f"warning--{m}--g{d}" for n, m in enumerate(meanings) for d in range(1, 2 + 2 * (n % 2 == 0))]
    return found + [f"information--{m}--g1" for m in meanings[::10]]


def test_a_held_out_meaning_is_held_out_in_all_designs_and_categories() -> None:
    names = many()
    parts = split(names, meanings=10)
    assert sorted((*parts.train, *parts.meanings, *parts.designs)) == sorted(names)
    trained = {named(name).meaning for name in (*parts.train, *parts.designs)}
    unseen = {named(name).meaning for name in parts.meanings}
    assert len(unseen) == 10
    assert not trained & unseen


def test_one_design_of_each_meaning_with_several_is_held_out() -> None:
    parts = split(many(), meanings=10)
    of_design, of_train = ([named(name).sentence for name in part] for part in (parts.designs, parts.train))
    assert len(set(of_design)) == len(of_design)
    assert all(of_train.count(sentence) == 2 for sentence in of_design)
    assert all(of_train.count(sentence) == 1 for sentence in set(of_train) - set(of_design))


def test_the_split_follows_from_the_names_alone() -> None:
    assert split(many(), meanings=10) == split(reversed(many()), meanings=10)
    assert split(many(), meanings=10) != split(many(), meanings=10, seed=1)


@pytest.mark.data
def test_the_real_signs() -> None:
    if cached(module.PACKAGE) is None:
        pytest.skip("needs mapillary-signs, which `make data` fetches")
    names = [path.stem for path in module.files()]
    parts = split(names)
    assert [len(part) for part in (names, parts.train, parts.meanings, parts.designs)] == [1543, 999, 285, 259]
    assert len({named(name).meaning for name in parts.meanings}) == 150
    for path, longest in product(module.files()[::400], (LONGEST, 64)):
        picture = rendered(path, longest)
        assert max(picture.shape[:2]) == longest
        assert np.mean(picture[..., 3] > 127) > 0.4
