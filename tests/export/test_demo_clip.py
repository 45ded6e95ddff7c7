"""The demonstration clip: the committed film and its truth agree, and both can be made again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

import edge_ravlm.errors
from edge_ravlm.export.data.demo_canvas import FPS, FRAMES, HEIGHT, SEED, WIDTH
from edge_ravlm.export.data.demo_clip import (
    CODING_FPS,
    Scene,
    cores,
    draw_frame,
    intervals,
    labels,
    region,
    retime,
    writer,
)

pytestmark = pytest.mark.export

FOLDER = Path(edge_ravlm.errors.__file__).with_name("clips")
FILM = FOLDER / "yard.mp4"
TRUTH: dict[str, Any] = msgspec.json.decode((FOLDER / "yard.json").read_bytes())
THINGS: dict[str, dict[str, Any]] = {thing["name"]: thing for thing in TRUTH["things"]}
TAUGHT = [(name, state, k) for name, states in TRUTH["teach"].items() for state, ks in states.items() for k in ks]


def state_at(name: str, frame: int) -> str | None:
    (state,) = [state for first, last, state in THINGS[name]["intervals"] if first <= frame <= last]
    return state


def film(path: Path) -> list[np.ndarray]:
    capture, pictures = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        pictures.append(read[1])
    return pictures


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(np.random.default_rng(SEED))


def test_the_film_is_the_one_that_the_truth_describes() -> None:
    data = FILM.read_bytes()
    assert TRUTH["clip"] == FILM.name
    assert TRUTH["sha256"] == hashlib.sha256(data).hexdigest()
    assert len(data) < 3_000_000, "it ships in every wheel"
    capture, frames = cv2.VideoCapture(str(FILM)), 0
    size = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    assert (*size, capture.get(cv2.CAP_PROP_FPS)) == (TRUTH["width"], TRUTH["height"], TRUTH["fps"])
    while capture.grab():
        frames += 1
    assert frames == TRUTH["frames"]


@pytest.mark.parametrize("name", THINGS)
def test_every_thing_has_its_place_in_the_picture(name: str) -> None:
    x0, y0, x1, y1 = THINGS[name]["region"]
    assert 0 <= x0 < x1 <= TRUTH["width"]
    assert 0 <= y0 < y1 <= TRUTH["height"]
    assert THINGS[name]["region"] == region(cores()[name])


@pytest.mark.parametrize("name", THINGS)
def test_every_frame_has_one_truth(name: str) -> None:
    thing = THINGS[name]
    firsts, lasts, states = zip(*thing["intervals"], strict=True)
    assert firsts == (0, *(last + 1 for last in lasts[:-1]))
    assert lasts[-1] == TRUTH["frames"] - 1
    assert set(states) == {*thing["states"], None}
    known = sum(last - first + 1 for first, last, state in thing["intervals"] if state is not None)
    assert known > TRUTH["frames"] / 2


@pytest.mark.parametrize(("name", "state", "frame"), TAUGHT)
def test_what_is_taught_is_true(name: str, state: str, frame: int) -> None:
    assert state_at(name, frame) == state
    assert frame <= TRUTH["frames"] / 3, "most of the film is there to be asked about"


def test_every_state_is_taught_three_times() -> None:
    assert {(name, state) for name, state, _ in TAUGHT} == {
        (n, s) for n, thing in THINGS.items() for s in thing["states"]
    }
    assert len(set(TAUGHT)) == 3 * len({(name, state) for name, state, _ in TAUGHT})


def test_drawing_again_gives_the_same_pictures_and_the_committed_ones(scene: Scene) -> None:
    again = Scene(np.random.default_rng(SEED))
    first, second = ([draw_frame(drawn, k)[0] for k in range(2)] for drawn in (scene, again))
    np.testing.assert_array_equal(first, second)
    assert first[0].shape == (HEIGHT, WIDTH, 3)
    assert first[0].dtype == np.uint8
    assert not np.array_equal(first[0], first[1])
    _, committed = cv2.VideoCapture(str(FILM)).read()
    assert cv2.PSNR(first[0], committed) > 30, "the film is this drawing, compressed"


def test_the_truth_follows_from_what_is_drawn(scene: Scene) -> None:
    for frame in sorted({frame for _, _, frame in TAUGHT} | {95, 600, FRAMES - 1}):
        _, boxes, parked = draw_frame(scene, frame)
        assert labels(frame / FPS, boxes, parked) == {name: state_at(name, frame) for name in THINGS}


def test_what_is_seen_for_a_moment_only_counts_as_unknown() -> None:
    states = ["on"] * 10 + [None] * 2 + ["off"] * 2 + ["on"] * 9
    assert intervals(states) == [[0, 9, "on"], [10, 13, None], [14, 22, "on"]]


def test_a_film_is_packed_small_and_plays_at_its_true_rate(scene: Scene, tmp_path: Path) -> None:
    pictures = [draw_frame(scene, k)[0] for k in range(12)]
    out = writer(tmp_path / "draft.mp4", CODING_FPS, False)
    for picture in pictures:
        out.write(picture)
    out.release()
    retime(tmp_path / "draft.mp4", tmp_path / "yard.mp4")
    assert cv2.VideoCapture(str(tmp_path / "yard.mp4")).get(cv2.CAP_PROP_FPS) == FPS
    played = film(tmp_path / "yard.mp4")
    assert len(played) == len(pictures)
    assert min(cv2.PSNR(shown, drawn) for shown, drawn in zip(played, pictures, strict=True)) > 27
    assert (tmp_path / "yard.mp4").stat().st_size < 12 * pictures[0].nbytes / 50
