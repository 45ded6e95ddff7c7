"""The data sets put together from small parts, and their manifests: what is held out stays so."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_ravlm.errors import DataError, UsageError
from edge_ravlm.export.data import datasets, furniture, manifest, signs
from edge_ravlm.export.data.composites import Wear
from edge_ravlm.export.data.datasets import Part, home, traffic
from edge_ravlm.export.data.easy_vqa import PACKAGE as EASY_VQA
from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.manifest import DATASETS, Manifest, check, differences, digest, items, made, main, read
from edge_ravlm.export.data.packages import cached, packages
from edge_ravlm.export.data.scenes import SIDE
from edge_ravlm.export.data.signs import Sign, named
from edge_ravlm.frames import Pixels

pytestmark = pytest.mark.export


def disc(tone: int) -> Pixels:
    return np.full((20, 20, 4), (tone, tone, tone, 255), np.uint8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 signs of two designs each, 40 pieces, and plain backgrounds: 20 in train, 220 held out."""
    known = [named(f"warning--m-{n}--g{d}", disc(n)) for n in range(200) for d in (1, 2)]
    pieces = [
        Piece(f"T#{n}", disc(n), f"thing {'abcdefgh'[n % 8]}", "Kitchen", (), 1, 2, 3, "Ada", "CC0-1.0")
        for n in range(40)
    ]
    monkeypatch.setattr(signs, "signs", lambda: known)
    monkeypatch.setattr(furniture, "furniture", lambda: pieces)
    tones = {"train": 20, "held_out": 220}
    for name in ("photographs", "rooms"):
        monkeypatch.setattr(datasets, name, lambda half: [np.full((300, 300, 3), tones[half], np.uint8)])


def test_traffic_holds_out_meanings_designs_and_backgrounds(small: None) -> None:
    made_of = traffic()
    parts = (made_of.train, made_of.held_out, made_of.designs)
    assert [len(part.things) for part in parts] == [50, 300, 50]
    seen, unseen, other = ({sign.sentence for sign in part.things} for part in parts)
    assert not seen & unseen
    assert other == seen
    assert [part.backgrounds[0].mean() for part in parts] == [20, 220, 220]


def test_home_holds_out_objects_and_backgrounds(small: None) -> None:
    made_of = home()
    assert not {p.title for p in made_of.train.things} & {p.title for p in made_of.held_out.things}
    assert len(made_of.train.things) + len(made_of.held_out.things) == 40
    assert [len(part.backgrounds) for part in (made_of.train, made_of.held_out)] == [2, 2]
    assert made_of.train.backgrounds[0].mean() != made_of.held_out.backgrounds[0].mean()


def test_a_part_composes_scenes(small: None) -> None:
    part: Part[Sign] = traffic().train
    first, again = (part.scene(3, np.random.default_rng(5), Wear(clutter=0)) for _ in range(2))
    assert first.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(first, again)
    assert len(part.material.objects) == len(part.things)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_manifest_names_its_sources_and_licences(dataset: str) -> None:
    kept = read(dataset)
    assert (kept.dataset, kept.schema) == (dataset, manifest.SCHEMA)
    for source in kept.sources:
        known = packages()[source.name]
        assert (source.package, source.licence) == (known.package, known.licence)
        assert source.version not in ("", "unknown")
        assert source.files > 0
        assert len(source.sha256) == 64
    assert kept.held_out


def test_the_manifest_of_signs_agrees_with_itself() -> None:
    kept = read("traffic")
    assert len(kept.held_out["meanings"]) == kept.counts["held_out"] == 285
    assert len(kept.held_out["designs"]) == kept.counts["designs"] == 259
    assert len({named(name).meaning for name in kept.held_out["meanings"]}) == 150
    assert all(name.startswith("opencv-doc/") for name in kept.held_out["backgrounds"])


def test_home_names_its_creators() -> None:
    assert {"CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"} == set(read("home").creators)


def test_differences_are_named() -> None:
    kept = read("traffic")
    assert differences(kept, kept) == []
    first = kept.sources[0]
    newer = msgspec.structs.replace(first, version="9")
    assert differences(kept, msgspec.structs.replace(kept, sources=[newer, *kept.sources[1:]])) == [], "same files"
    changed = msgspec.structs.replace(newer, sha256="0" * 64)
    assert differences(kept, msgspec.structs.replace(kept, sources=[changed, *kept.sources[1:]])) == [
        "files of 'mapillary-signs' (9, was 1.8.0)"
    ]
    fewer = msgspec.structs.replace(
        kept,
        sources=kept.sources[1:],
        counts={"signs": 1},
        held_out={**kept.held_out, "designs": kept.held_out["designs"][1:]},
    )
    got = differences(kept, fewer)
    assert [phrase.split(" (")[0] for phrase in got] == ["sources", "counts", "held-out designs"]
    assert kept.held_out["designs"][0] in got[2]
    assert differences(kept, msgspec.structs.replace(kept, sha256="0" * 64)) == ["files"]


def test_a_changed_package_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read("easy-vqa")
    monkeypatch.setitem(DATASETS, "easy-vqa", lambda: kept)
    assert check("easy-vqa") == kept
    found: Manifest = msgspec.structs.replace(kept, counts={**kept.counts, "train": 5})
    monkeypatch.setitem(DATASETS, "easy-vqa", lambda: found)
    with pytest.raises(DataError, match=r"data set 'easy-vqa': expected what its manifest says, got other counts"):
        check("easy-vqa")


def test_the_command_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(DATASETS, "easy-vqa", lambda: read("easy-vqa"))
    assert main(["easy-vqa"]) == 0
    assert capsys.readouterr().out.startswith("easy-vqa: {")
    assert main(["cities"]) == 2
    assert capsys.readouterr().err.startswith("data set 'cities': expected one of traffic, home, easy-vqa")
    for call in (read, made, check):
        with pytest.raises(UsageError, match="data set 'cities'"):
            call("cities")


def test_a_digest_is_of_names_and_contents_in_any_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files = items([tmp_path / "b", tmp_path / "a"], tmp_path)
    assert digest(files) == digest(reversed(files))
    assert digest(files) != digest(files[:1])
    (tmp_path / "a").write_text("c")
    assert digest(items([tmp_path / "b", tmp_path / "a"], tmp_path)) != digest(files)


@pytest.mark.data
def test_the_real_signs_are_those_of_the_manifest() -> None:
    folder = cached(signs.PACKAGE)
    if folder is None:
        pytest.skip("needs mapillary-signs, which `make data` fetches")
    kept = read("traffic")
    assert digest(items(signs.files(), folder)) == kept.sources[0].sha256
    parts = signs.split(path.stem for path in signs.files())
    assert list(parts.meanings) == kept.held_out["meanings"]
    assert list(parts.designs) == kept.held_out["designs"]


@pytest.mark.data
def test_the_real_questions_are_those_of_the_manifest() -> None:
    if cached(EASY_VQA) is None:
        pytest.skip("needs easy-vqa, which `make data` fetches")
    check("easy-vqa")


@pytest.mark.data
@pytest.mark.parametrize("dataset", ["traffic", "home"])
def test_the_whole_real_data_sets_are_those_of_the_manifests(dataset: str) -> None:
    missing = [source.name for source in read(dataset).sources if cached(source.name) is None]
    if missing:
        pytest.skip(f"needs more data: run python -m edge_ravlm.export.data.packages {' '.join(missing)}")
    check(dataset)
