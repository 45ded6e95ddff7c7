"""Judge sets: what is asked of them is right by construction, from scenes and from a user's folder alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.judging import judge_folder, judge_set, prepared, state_task
from edge_ravlm.preprocess import Preprocess

pytestmark = pytest.mark.export


def material(objects: int = 6) -> Material:
    """Discs of strong colours on noisy gradients."""
    rng = np.random.default_rng(5)
    cut_outs = []
    for index in range(objects):
        cut_out = np.zeros((80, 80, 4), np.uint8)
        colour = cv2.cvtColor(np.uint8([[[index * 180 // objects, 255, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]
        cv2.circle(cut_out, (40, 40), 36, (*colour.tolist(), 255), -1)
        cut_outs.append(cut_out)
    ramp = np.linspace(60, 160, 700, dtype=np.float32)[None, :, None]
    backgrounds = [np.uint8(ramp + rng.normal(0, 4, (640, 700, 3))) for _ in range(2)]
    return Material(cut_outs, backgrounds)


def test_every_object_is_a_memory_and_is_asked_for_on_other_pictures() -> None:
    found = judge_set(material(), each=2, tasks=3)
    assert len(found.memories) == 6
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert len(found.tasks) == 3
    assert not any(
        np.array_equal(found.memories[label], query) for label, query in zip(found.labels, found.queries, strict=True)
    )
    again = judge_set(material(), each=2, tasks=3)
    assert all(np.array_equal(a, b) for a, b in zip(found.pictures, again.pictures, strict=True))


def test_pictures_of_one_state_are_more_alike_than_those_of_two() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        task = state_task(material(), rng, states=2)
        by_state = [np.mean([p for p, s in task.taught if s == state], axis=0) for state in (0, 1)]
        assert np.abs(by_state[0] - by_state[1]).max() > 40
        assert {state for _, state in task.taught} == {state for _, state in task.asked} == {0, 1}
        assert len(task.foreign) == 2


def test_a_folder_is_judged_by_seeing_its_pictures_again() -> None:
    rng = np.random.default_rng(1)
    pictures = [
        np.uint8(np.full((90, 120, 3), shade) + rng.integers(0, 9, (90, 120, 3))) for shade in (20, 90, 160, 230)
    ]
    found = judge_folder(pictures, each=3, tasks=2)
    means = [picture.mean() for picture in found.memories]
    for label, query in zip(found.labels, found.queries, strict=True):
        assert np.argmin([abs(query.mean() - mean) / (mean + 1) for mean in means]) in (
            label,
            max(0, label - 1),
            label + 1,
        )
        assert query.shape[0] < 90
    assert len(found.tasks) == 2


def test_what_is_asked_about_is_no_picture_that_was_taught() -> None:
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (90, 120, 3), dtype=np.uint8) for _ in range(6)]
    for task in (state_task(material(), rng), *judge_folder(pictures, tasks=2).tasks):
        taught = {picture.tobytes() for picture, _ in task.taught}
        assert not taught & {picture.tobytes() for picture in (*(p for p, _ in task.asked), *task.foreign)}


def test_prepared_pictures_are_what_the_encoder_takes() -> None:
    (pixels,) = prepared([np.zeros((90, 120, 3), np.uint8)], Preprocess(height=32, width=48))
    assert (pixels.shape, pixels.dtype) == ((1, 32, 48, 3), np.uint8)
