"""Pictures to learn from: the same again for the same arguments, a held-out part of their own, broken files named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_ravlm.errors import DataError, FrameError
from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.distil import (
    Batch,
    CloserViews,
    ComposedScenes,
    DistilSettings,
    FolderPictures,
    Pictures,
    Share,
    ThingScenes,
)
from edge_ravlm.export.distil.feed import Sides, feed
from edge_ravlm.export.distil.pictures import NOTHING, augmented
from edge_ravlm.export.images import others_in_a_mirror

pytestmark = pytest.mark.export


def made_up(objects: int = 20) -> Material:
    """Cut-outs, each of one grey level of its own, on black photographs."""
    cut_outs = []
    for level in np.linspace(60, 250, objects):
        cut_out = np.zeros((40, 30, 4), np.uint8)
        cut_out[5:35, 5:25] = (level, level, level, 255)
        cut_outs.append(cut_out)
    return Material(cut_outs, [np.zeros((300, 400, 3), np.uint8), np.full((260, 260, 3), 10, np.uint8)])


def written(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        # All of one colour per file, which no light or crop turns into another's.
        cv2.imwrite(str(path), np.full((50, 70, 3), 8 + 10 * number, np.uint8))
    return paths


@pytest.fixture(params=["scenes", "folder", "things"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Pictures]:
    paths = written(tmp_path, 20)
    if request.param == "things":
        return lambda seed: ThingScenes([Share(made_up()), Share(made_up(8), 0.5, mirrored=False)], seed=seed)
    return (lambda seed: ComposedScenes(made_up(), seed=seed)) if request.param == "scenes" else (
        lambda seed: FolderPictures(paths, seed=seed)
    )  # fmt: skip


def same(one: Batch, other: Batch) -> bool:
    return (
        len(one.pictures) == len(other.pictures)
        and all(np.array_equal(a, b) for a, b in zip(one.pictures, other.pictures, strict=True))
        and list(one.things) == list(other.things)
    )


def test_batches_depend_on_seed_step_and_rank_and_on_nothing_else(make: Callable[[int], Pictures]):
    pictures = make(0)
    batch = pictures.batch(3, 1, 4)
    pictures.batch(4, 0, 4)
    assert same(batch, make(0).batch(3, 1, 4))
    assert same(pictures.held_out(), make(0).held_out())
    for other in (make(1).batch(3, 1, 4), pictures.batch(2, 1, 4), pictures.batch(3, 0, 4)):
        assert not same(batch, other)


def test_two_halves_are_the_whole_batch(make: Callable[[int], Pictures]):
    first, second = make(0).batch(5, 0, 3), make(0).batch(5, 1, 3)
    halves = Batch([*first.pictures, *second.pictures], [*first.things, *second.things])
    assert same(halves, make(0).batch(5, 0, 6))


def test_things_come_in_pairs_of_different_pictures(make: Callable[[int], Pictures]):
    batch = make(0).batch(2, 0, 40)
    pairs = [(n, n + 1) for n in range(0, 40, 2) if NOTHING not in batch.things[n : n + 2]]
    assert len(pairs) > 15
    for one, other in pairs:
        assert batch.things[one] == batch.things[other]
        assert not np.array_equal(batch.pictures[one], batch.pictures[other])
    assert len(set(batch.things)) > 5


def test_pictures_are_bgr_bytes(make: Callable[[int], Pictures]):
    for picture in (*make(0).batch(0, 0, 6).pictures, *make(0).held_out().pictures):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3


def test_kept_objects_and_files_are_in_no_batch(tmp_path: Path):
    scenes = ComposedScenes(made_up(), held_out=0.25)
    assert not set(scenes.kept) & set(scenes.learnt)
    assert len(scenes.kept) == 5
    assert len(scenes.held_out().pictures) == 5 * 4
    folder = FolderPictures(written(tmp_path, 20), held_out=0.25)
    assert sorted(folder.kept + folder.learnt) == list(range(20))
    assert sorted(int(picture[0, 0, 0]) for picture in folder.held_out().pictures) == sorted(
        8 + 10 * r for r in folder.kept
    )


def test_scenes_show_their_objects_and_only_those_learnt():
    material = made_up()
    scenes = ComposedScenes(material, held_out=0.5)
    # Kept objects are painted pure blue: not a trace of it may be in a batch.
    for index in scenes.kept:
        material.objects[index][..., :3] = np.where(material.objects[index][..., 3:] > 0, (255, 0, 0), 0)
    shown = [picture.astype(int) for step in range(3) for picture in scenes.batch(step, 0, 12).pictures]
    assert not any((picture[..., 0] - picture[..., 2] > 100).any() for picture in shown)
    assert np.mean([picture.max() > 60 for picture in shown]) > 0.8
    assert any((picture.astype(int)[..., 0] - picture[..., 2] > 100).any() for picture in scenes.held_out().pictures)


def test_captions_stay_with_their_pictures(tmp_path: Path):
    paths = written(tmp_path, 12)
    pictures = FolderPictures(paths, captions=[str(8 + 10 * number) for number in range(12)])
    held = pictures.held_out()
    assert [str(picture[0, 0, 0]) for picture in held.pictures] == list(held.captions or ())
    assert len(pictures.batch(0, 0, 5).captions or ()) == 5


def test_broken_files_are_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = written(tmp_path, 12)
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    paths[7].write_text("no picture")
    pictures = FolderPictures(paths)
    assert "left out 2 pictures that cannot be read: 03.png, 07.png" in caplog.text
    assert not {3, 7} & {*pictures.kept, *pictures.learnt}


def test_too_few_files_are_refused_with_the_broken_ones_named(tmp_path: Path):
    paths = written(tmp_path, 9)
    for path in paths[:7]:
        path.write_text("no picture")
    with pytest.raises(DataError, match=r"at least 8.*got 2 of 9; broken: 00.png.*04.png and 2 more"):
        FolderPictures(paths)
    with pytest.raises(DataError, match="got 0 of 0;"):
        FolderPictures([])


def test_one_object_is_too_little():
    with pytest.raises(DataError, match="two objects"):
        ComposedScenes(made_up(1))


def test_augmentation_changes_crop_light_and_side():
    rng = np.random.default_rng(0)
    ramp = np.repeat(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (80, 1))[..., None], 3, axis=2)
    seen = [augmented(ramp, rng) for _ in range(40)]
    assert len({picture.shape for picture in seen}) > 20
    assert all(picture.shape[0] * picture.shape[1] > 0.2 * 80 * 100 for picture in seen)
    rising = [int(picture[:, -1, 1].mean()) > int(picture[:, 0, 1].mean()) for picture in seen]
    assert 8 < sum(rising) < 32
    assert augmented(ramp[:1, :1], rng).shape == (1, 1, 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_feed_keeps_the_order_and_resizes_for_both(tmp_path: Path, workers: int):
    pictures = ComposedScenes(made_up())
    parts = [(step, 0) for step in range(6)]
    inputs = list(feed(pictures, Sides(student=32, teacher=48), parts, 2, workers))
    assert [(one.student.shape, one.teacher.shape) for one in inputs] == [((2, 32, 32, 3), (2, 48, 48, 3))] * 6
    direct = [Sides(32, 48).inputs(pictures.batch(step, 0, 2), step).student for step in range(6)]
    assert all(bool((one.student == other).all()) for one, other in zip(inputs, direct, strict=True))


def test_a_student_may_begin_small_and_its_teacher_see_a_part_only():
    sides = Sides(student=32, teacher=48, every=2, early=16, is_early=lambda step: step < 3)
    batch = ComposedScenes(made_up()).batch(0, 0, 4)
    assert sides.inputs(batch, 2).student.shape == (4, 16, 16, 3)
    assert sides.inputs(batch, 3).student.shape == (4, 32, 32, 3)
    whole = Sides(student=32, teacher=48).inputs(batch, 0)
    assert bool((sides.inputs(batch, 3).teacher == whole.teacher[::2]).all())


def test_things_of_two_data_sets_are_told_apart():
    scenes = ThingScenes([Share(made_up(20)), Share(made_up(10))], views=0.0, held_out=0.2)
    assert [len(kept) for kept in scenes.kept] == [4, 2]
    shown = {thing for step in range(20) for thing in scenes.batch(step, 0, 16).things}
    assert shown == {*scenes.learnt[0].tolist(), *(20 + scenes.learnt[1]).tolist()}
    held = scenes.held_out()
    assert set(held.things) == {*scenes.kept[0].tolist(), *(20 + scenes.kept[1]).tolist()}
    assert len(held.pictures) == 6 * 4


def test_an_empty_view_is_a_thing_of_its_own():
    scenes = ThingScenes([Share(made_up())], views=1.0)
    things = scenes.batch(0, 0, 8).things
    assert things[::2] == things[1::2]
    assert len(set(things)) == 4
    assert not set(things) & set(scenes.batch(1, 0, 8).things)


def test_what_looks_alike_comes_together():
    scenes = ThingScenes([Share(made_up(40), together=4)], views=0.0)
    places = {thing: place for place, thing in enumerate(scenes.learnt[0].tolist())}
    for step in range(5):
        found = [places[thing] for thing in scenes.batch(step, 0, 8).things[::2]]
        assert [(place - found[0]) % len(places) for place in found] == [0, 1, 2, 3]


def test_every_second_step_shows_what_the_encoder_will_look_at_closer():
    """The thing fills about 1 over the margin of the cut-out, wherever it lay in the scene; all else is black."""
    closer = CloserViews(whole=64, side=48, margin=(1.4, 1.6), off=0.0)
    dark = Material([np.full((40, 40, 4), 255, np.uint8)] * 12, [np.zeros((300, 300, 3), np.uint8)])
    scenes = ThingScenes([Share(dark)], views=0.0, plain=0.0, closer=closer)
    sides = Sides(student=32, teacher=32, early=40, is_early=lambda step: step >= 3)
    assert [sides.inputs(scenes.batch(step, 0, 4), step).student.shape[1] for step in range(5)] == [32, 48, 32, 40, 32]
    cut_outs = [picture for step in (1, 3, 5) for picture in scenes.batch(step, 0, 32).pictures]
    assert {picture.shape for picture in cut_outs} == {(48, 48, 3)}
    columns = [np.flatnonzero(picture.max(axis=(0, 2)) > 60) for picture in cut_outs]
    wide = [float(np.ptp(found)) / 48 for found in columns if len(found)]
    assert 0.5 < float(np.median(wide)) < 0.8
    assert same(scenes.batch(1, 0, 4), ThingScenes([Share(dark)], views=0.0, plain=0.0, closer=closer).batch(1, 0, 4))
    assert scenes.batch(0, 0, 4).side is None


def test_in_a_mirror_are_new_things_only():
    left, both, right = (np.zeros((40, 40, 4), np.uint8) for _ in range(3))
    for cut_out, columns in ((left, slice(0, 20)), (both, slice(10, 30)), (right, slice(20, 40))):
        cut_out[:, columns] = 255
    lower = np.zeros((40, 40, 4), np.uint8)
    lower[20:, :20] = 255
    things = [left, both, right, lower]
    (found,) = others_in_a_mirror(things, range(4))
    assert np.array_equal(found, lower[:, ::-1]), "the others are symmetric, or each other's mirror image"
    assert others_in_a_mirror(things, [0, 1]) == []


def test_a_data_set_of_one_thing_is_refused():
    with pytest.raises(DataError, match="two of every data set"):
        ThingScenes([Share(made_up()), Share(made_up(1))])


def test_a_fault_while_reading_ahead_reaches_the_reader(tmp_path: Path):
    pictures = FolderPictures(written(tmp_path, 10))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(FrameError, match=r"\.png"):
        list(feed(pictures, Sides(32, 32), [(0, 0)], 2, DistilSettings().workers))
