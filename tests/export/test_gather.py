"""The pictures of an export: what is learnt, fitted or calibrated on is none of what is judged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge_ravlm.export import images
from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.images import Gathered, gather
from edge_ravlm.export.judging import Task, judge_set, state_tasks
from edge_ravlm.export.recipe import Images, Recipe
from edge_ravlm.runtime.transfer import read_rows

pytestmark = pytest.mark.export

RED, BLUE = (20, 20, 220), (220, 20, 20)
"""No light that is put on a picture turns one into the other."""


def colours(pictures: Iterable[np.ndarray]) -> set[str]:
    return {"red" if picture[..., 2].mean() > picture[..., 0].mean() else "blue" for picture in pictures}


def of_tasks(tasks: Iterable[Task]) -> list[np.ndarray]:
    return [one for task in tasks for one in (*(p for p, _ in (*task.taught, *task.asked)), *task.foreign)]


def learnt_from(gathered: Gathered) -> list[np.ndarray]:
    training = gathered.training
    batches = [picture for step in range(4) for picture in training.batch(step, 0, 16).pictures]
    return [*batches, *training.held_out().pictures, *gathered.calibration, *of_tasks(gathered.fitting)]


def judged_on(gathered: Gathered) -> list[np.ndarray]:
    return [*gathered.judging.pictures, *of_tasks(gathered.judging.tasks)]


def test_a_folders_judged_pictures_are_used_for_nothing_else(tmp_path: Path) -> None:
    recipe = Recipe(name="x", images=Images(source="pictures", calibration=32, held_out=0.3))
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / f"pictures/{number}.png" for number in range(80)]

    def write(path: Path, colour: tuple[int, int, int]) -> None:
        assert cv2.imwrite(str(path), np.full((40, 50, 3), colour, np.uint8))

    for number, path in enumerate(paths):
        write(path, (number, 2 * number, 3 * number))
    held_out = {int(picture[0, 0, 0]) for picture in gather(recipe, tmp_path).judging.memories}
    assert 8 <= len(held_out) <= 40
    for number, path in enumerate(paths):  # which half a picture is in depends on its name alone
        write(path, BLUE if number in held_out else RED)
    gathered = gather(recipe, tmp_path)
    assert gathered.fitting
    assert gathered.judging.tasks
    assert colours(learnt_from(gathered)) == {"red"}
    assert colours(judged_on(gathered)) == {"blue"}


def test_what_a_memory_takes_for_a_picture_an_export_does_too(tmp_path: Path) -> None:
    recipe = Recipe(name="x", images=Images(source=".", calibration=16))
    for number in range(60):
        shade = np.full((40, 50, 3), 4 * number, np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number}.{'tiff' if number % 2 else 'png'}"), shade)
    assert gather(recipe, tmp_path).sources[0].origin == "60 pictures of the user"
    assert len(read_rows(tmp_path)[0]) == 60


def test_composed_scenes_are_judged_on_objects_and_photographs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(colour: tuple[int, int, int]) -> Material:
        return Material(
            [np.full((40, 40, 4), (*colour, 255), np.uint8) for _ in range(8)],
            [np.full((320, 320, 3), colour, np.uint8)],
        )

    monkeypatch.setattr(images, "material", lambda: (half(RED), half(BLUE)))
    monkeypatch.setattr(images, "state_tasks", lambda source, _count, seed: state_tasks(source, 3, seed))
    monkeypatch.setattr(images, "judge_set", lambda source, **options: judge_set(source, **{**options, "tasks": 3}))
    gathered = gather(msgspec.structs.replace(Recipe(name="x"), images=Images(calibration=16)), Path())
    assert colours(learnt_from(gathered)) == {"red"}
    assert colours(judged_on(gathered)) == {"blue"}
