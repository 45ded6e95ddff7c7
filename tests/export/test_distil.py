"""Distillation on toys: what it learns, that it can be killed and shared, and what it refuses.

``torchrun test_distil.py FOLDER`` trains the toy in several processes; a test does that.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_ravlm.errors import DataError, UsageError
from edge_ravlm.export.distil import Batch, DistilSettings, Texts, distil, whitened
from edge_ravlm.export.distil.checkpoint import CHECKPOINT, LOG, STUDENT
from edge_ravlm.export.distil.feed import squares
from edge_ravlm.export.distil.losses import (
    caption_loss,
    cosine_loss,
    pair_loss,
    proxy_loss,
    relational_loss,
    resized,
    ridge,
    token_loss,
)
from edge_ravlm.export.distil.training import learning_rate
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.students.plain import PlainBackbone

pytestmark = pytest.mark.export

DIM, COLOURS = 6, 12


class ToyBackbone(nn.Module):
    """Two convolutions without BatchNorm, so that a batch can be cut anywhere."""

    channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.ReLU(), nn.Conv2d(12, 16, 8, 8), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def fused(self) -> nn.Module:
        return self


class ToyTeacher:
    """A random network that is never trained."""

    name, side, dim, sources = "toy", 48, 20, ()

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self._network = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Tanh(), nn.Conv2d(16, 20, 3, 3), nn.Tanh())
        self.calls = 0

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        grid = self._network((pixels.permute(0, 3, 1, 2).float() - 127) / 128)
        return nn.functional.normalize(grid.mean((2, 3)), dim=1), grid.flatten(2).transpose(1, 2)


class Blobs:
    """Pictures of a coloured disc each, with the colour's number as caption."""

    count = COLOURS

    def __init__(self, captions: bool = False) -> None:
        self.captions = captions
        self._colours = np.random.default_rng(3).integers(0, 256, (COLOURS, 3))

    def batch(self, step: int, rank: int, size: int) -> Batch:
        return self._drawn([(step, place) for place in range(rank * size, (rank + 1) * size)])

    def held_out(self) -> Batch:
        return self._drawn([(2**50, place) for place in range(24)])

    def _drawn(self, seeds: Sequence[tuple[int, int]]) -> Batch:
        pictures, said = [], []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            picture = np.asarray(rng.integers(0, 120, (64, 64, 3)), np.uint8)
            colour, (y, x) = int(rng.integers(COLOURS)), rng.integers(12, 52, 2)
            rows, columns = np.ogrid[:64, :64]
            picture[(rows - y) ** 2 + (columns - x) ** 2 < 150] = self._colours[colour]
            pictures.append(picture)
            said.append(str(colour))
        return Batch(pictures, [int(colour) for colour in said], said if self.captions else None)


def texts(captions: Sequence[str]) -> NDArray[np.float32]:
    table = np.random.default_rng(5).normal(size=(COLOURS, DIM)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return table[[int(caption) for caption in captions]]


def toy_student() -> ImageStudent:
    torch.manual_seed(0)
    return ImageStudent(ToyBackbone(), DIM, side=64)


def settings(**changes: Any) -> DistilSettings:
    usual: dict[str, Any] = {"steps": 6, "batch": 8, "fit_pictures": 64, "evaluate_every": 2, "rate": 3e-3}
    return DistilSettings(**{**usual, **changes})


def train(folder: Path, student: ImageStudent | None = None, progress: Any = None, **changes: Any) -> ImageStudent:
    return distil(student or toy_student(), ToyTeacher(), Blobs(), settings(**changes), folder, progress=progress)


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / LOG).open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(one: ImageStudent, other: ImageStudent) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


# -- losses ----------------------------------------------------------------------------------------------------


def unit(*shape: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))), dim=-1)


def test_every_loss_is_zero_for_a_perfect_student_and_not_for_another():
    goal, other = unit(6, DIM), unit(6, DIM).roll(1, 0)
    for loss in (cosine_loss, relational_loss):
        assert float(loss(goal, goal)) == pytest.approx(0, abs=1e-6)
        assert float(loss(other, goal)) > 0.1
    cells = unit(2, 9, 5)
    assert float(token_loss(cells, cells)) == pytest.approx(0, abs=1e-6)
    assert float(token_loss(cells.roll(1, 1), cells)) > 0.1


def test_the_relational_loss_sees_similarities_only():
    goal = unit(6, DIM)
    turned = goal @ torch.linalg.qr(torch.randn(DIM, DIM))[0]
    assert float(relational_loss(turned, goal)) == pytest.approx(0, abs=1e-5)
    assert float(cosine_loss(turned, goal)) > 0.1


def test_captions_attract_their_pictures_and_equal_captions_share_the_right_answer():
    said = unit(4, DIM)
    assert float(caption_loss(said, said, 0.05)) < float(caption_loss(said.roll(1, 0), said, 0.05))
    doubled = said.repeat(2, 1)
    # Two right answers of equal score cost log 2, and nothing would be gained by telling them apart.
    assert float(caption_loss(doubled, doubled, 0.02)) == pytest.approx(np.log(2), abs=0.02)


def test_pairs_are_drawn_together_and_what_shows_nothing_has_no_company():
    things, nobody = torch.tensor([0, 0, 1, 1]), (torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64))
    apart = unit(4, DIM)
    together = apart[[0, 0, 2, 2]]
    assert float(pair_loss(together, things, *nobody, 0.05)) < float(pair_loss(apart, things, *nobody, 0.05)) - 1
    # Right answers among strangers that are all alike: three candidates of equal score cost log 3.
    alike = apart[[0, 0, 0, 0]]
    assert float(pair_loss(alike, things, *nobody, 0.1)) == pytest.approx(np.log(3), abs=1e-5)
    assert float(pair_loss(alike, torch.tensor([0, 1, -1, -1]), *nobody, 0.1)) == 0


def test_earlier_batches_are_company_and_strangers_too():
    things, picture = torch.tensor([7]), unit(1, DIM)
    same, other = (picture, things), (picture, things + 1)
    stranger = unit(1, DIM), things + 2
    assert float(pair_loss(picture, things, *same, 0.1)) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(picture, things, *other, 0.1)) == 0
    both = torch.cat([same[0], stranger[0]]), torch.cat([same[1], stranger[1]])
    assert float(pair_loss(picture, things, *both, 0.1)) > 1e-5


def test_pairs_draw_pictures_of_one_thing_together_whatever_the_teacher_sees(tmp_path: Path):
    class Blind(ToyTeacher):
        """Sees the noise in a corner only."""

        def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            return super().embed(pixels[:, :8, :8].repeat(1, 6, 6, 1))

    def apart(student: ImageStudent) -> float:
        held = Blobs().held_out()
        with torch.no_grad():
            embedding, _ = student(squares(held.pictures, 64))
        return float(pair_loss(embedding, torch.tensor(held.things), embedding[:0], torch.zeros(0, dtype=int), 0.1))

    usual: dict[str, Any] = {"steps": 40, "batch": 16, "evaluate_every": 20, "tokens": 0, "cosine": 0.3}
    folders = tmp_path / "without", tmp_path / "with"
    without, learnt = (
        distil(toy_student(), Blind(), Blobs(), settings(**usual, pairs=pairs, recent=64), folder)
        for folder, pairs in zip(folders, (0.0, 1.0), strict=True)
    )
    assert apart(learnt) < 0.8 * apart(without)
    assert all(float(row["pairs"]) > 0 for row in log(tmp_path / "with"))


def test_each_thing_has_a_direction_that_its_pictures_are_drawn_to():
    proxies, things = 3 * torch.eye(4), torch.tensor([0, 2, -1, 2**40])
    right, wrong = torch.eye(4)[[0, 2, 1, 1]], torch.eye(4)[[1, 1, 1, 1]]
    assert proxy_loss(right, things, proxies, 0.05) < 1e-6
    assert proxy_loss(wrong, things, proxies, 0.05) > 10
    nothing = torch.tensor([-1, -1, -1, 2**40])
    assert proxy_loss(right, nothing, proxies, 0.05) == 0


def test_directions_bring_pictures_of_one_thing_together(tmp_path: Path):
    changes: dict[str, Any] = {"cosine": 0.0, "relational": 0.0, "tokens": 0.0, "pairs": 1e-6, "steps": 40}
    student = train(tmp_path / "a", proxies=1.0, evaluate_every=40, **changes)
    assert float(log(tmp_path / "a")[-1]["proxies"]) < float(log(tmp_path / "a")[0]["proxies"])
    assert "proxies/directions" in load_file(tmp_path / "a" / CHECKPOINT)
    assert not any("proxies" in name for name in student.state_dict())


def test_a_restart_begins_again_with_its_rate_and_its_small_pictures():
    chosen = settings(steps=30, restart=10, warm_up=0.2, rate=1.0, early_side=32, early=0.5)
    rates = [learning_rate(chosen, step) for step in range(30)]
    assert rates[1] == rates[13] == max(rates) == 1.0
    assert rates[9] < 0.1 < rates[10] == 0.25
    assert rates[29] < 0.02
    assert [step for step in range(30) if chosen.is_early(step)] == [*range(5), *range(10, 20)]
    assert not any(settings(steps=30, restart=10, early=0.5).is_early(step) for step in range(30))


def test_until_a_restart_directions_are_put_where_things_are_seen(tmp_path: Path):
    train(tmp_path, proxies=1.0, pairs=1.0, restart=6, evaluate_every=6)
    lengths = load_file(tmp_path / CHECKPOINT)["proxies/directions"].norm(dim=1)
    assert torch.allclose(lengths, torch.ones(COLOURS), atol=1e-5)
    assert {float(row["proxies"]) for row in log(tmp_path)} == {0.0}
    train(tmp_path / "on", proxies=1.0, pairs=1.0, restart=4)
    assert [float(row["proxies"]) > 0 for row in log(tmp_path / "on")] == [False] * 4 + [True] * 2


def test_the_first_convolutions_rest_after_a_restart(tmp_path: Path):
    def weights(folder: str, **changes: Any) -> list[Tensor]:
        train(tmp_path / folder, restart=3, evaluate_every=1, relational=0.0, weight_decay=0.0, **changes)
        stored = load_file(tmp_path / folder / CHECKPOINT)
        return [stored[f"learner/student.{name}"] for name, part in convolutions() if part.ndim == 4]

    def convolutions() -> list[tuple[str, Tensor]]:
        return [(name, part) for name, part in toy_student().state_dict().items() if "backbone" in name]

    before, free, resting = weights("a", steps=3), weights("b", steps=6), weights("c", steps=6, frozen=1)
    changed = [not torch.equal(one, other) for one, other in zip(before, resting, strict=True)]
    assert changed == [False] + [True] * (len(changed) - 1)
    assert not torch.equal(before[0], free[0])


def test_grids_are_resized_as_pictures_are():
    ramp = torch.arange(8.0).repeat(8, 1).flatten()[None, :, None]
    smaller = resized(ramp, 16).reshape(4, 4)
    assert torch.all(smaller.diff(dim=1) > 1)
    torch.testing.assert_close(smaller[0], smaller[3])
    with pytest.raises(DataError, match=r"7 teacher tokens.*distil.tokens = 0"):
        resized(torch.zeros(1, 7, 3), 16)


def test_ridge_finds_the_linear_map_that_there_is():
    inputs, truth = torch.randn(200, 5), torch.randn(5, 3)
    torch.testing.assert_close(ridge(inputs, inputs @ truth, 1e-8), truth, atol=1e-4, rtol=1e-4)


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(settings(steps=100, warm_up=0.1, rate=1.0), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


# -- what it learns --------------------------------------------------------------------------------------------


def likeness(student: ImageStudent) -> float:
    """Mean cosine to the teacher's whitened embedding on held-out pictures."""
    held = Blobs().held_out().pictures
    aim = whitened(ToyTeacher(), Blobs(), DIM, settings())([squares([picture], 48).numpy() for picture in held])
    with torch.no_grad():
        found = student(squares(held, 64))[0].numpy()
    return float((aim * found).sum(1).mean())


def test_a_trained_student_is_nearer_to_the_teacher_than_the_closed_form(tmp_path: Path):
    start = likeness(train(tmp_path / "start", steps=1, rate=1e-9))
    trained = likeness(train(tmp_path / "trained", steps=60, evaluate_every=20, batch=16))
    assert start > 0.1
    assert trained > start + 0.05


def test_a_student_with_batch_norms_learns_too_and_its_deploy_form_is_equal(tmp_path: Path):
    torch.manual_seed(0)
    student = ImageStudent(PlainBackbone((8, 8, 8, 16, 16), (1, 1, 1, 1)), DIM, side=64)
    trained = train(tmp_path, student, steps=30, evaluate_every=10)
    rows = [float(row["held_out"]) for row in log(tmp_path) if row["held_out"]]
    assert min(rows) < rows[0]
    shown = squares(Blobs().held_out().pictures[:4], 64)
    with torch.no_grad():
        torch.testing.assert_close(trained.fused()(shown)[0], trained(shown)[0], atol=1e-5, rtol=1e-4)


def test_captions_bring_pictures_to_their_texts(tmp_path: Path):
    def right(folder: str, known: Texts | None) -> float:
        changes = settings(steps=100, batch=24, evaluate_every=20, captions=2.0, tokens=0, rate=1e-2)
        student = distil(toy_student(), ToyTeacher(), Blobs(captions=True), changes, tmp_path / folder, texts=known)
        held = Blobs(captions=True).held_out()
        with torch.no_grad():
            found = student(squares(held.pictures, 64))[0].numpy()
        said = texts([str(colour) for colour in range(COLOURS)])
        return float(np.mean((found @ said.T).argmax(1) == [int(caption) for caption in held.captions or ()]))

    assert right("with", texts) > right("without", None) + 0.2


def test_the_teachers_view_has_unit_rows_of_the_students_length():
    view = whitened(ToyTeacher(), Blobs(), DIM, settings())
    found = view([squares([picture], 48).numpy() for picture in Blobs().held_out().pictures])
    assert found.shape == (24, DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_teacher_with_a_head_of_its_own_leaves_the_embedding_alone(tmp_path: Path):
    def projection(folder: str, steps: int, **changes: Any) -> Tensor:
        train(tmp_path / folder, steps=steps, relational=0.0, weight_decay=0.0, **changes)
        return load_file(tmp_path / folder / CHECKPOINT)["learner/student.projection"]

    # Learning changes what the backbone sees, not where the embedding points: that is for the pairs.
    assert torch.equal(projection("a", 1, teacher_head=True), projection("b", 6, teacher_head=True))
    assert not torch.equal(projection("c", 1), projection("d", 6))


def test_a_student_may_begin_small_and_its_teacher_look_now_and_then(tmp_path: Path):
    changes: dict[str, Any] = {"teacher_every": 4, "early_side": 32, "early": 0.5, "pairs": 1.0, "recent": 16}
    assert_same(train(tmp_path / "one", **changes), train(tmp_path / "other", **changes))
    assert [row["step"] for row in log(tmp_path / "one")] == ["1", "2", "3", "4", "5", "6"]


def test_bfloat16_trains_as_well(tmp_path: Path):
    trained = train(tmp_path, bf16=True, steps=4)
    assert all(torch.isfinite(tensor).all() for tensor in trained.state_dict().values())
    assert {tensor.dtype for tensor in trained.state_dict().values()} == {torch.float32}


# -- stopping and going on -------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 3, 4])
def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, killed_after: int):
    def kill(done: int, total: int) -> None:
        if done == killed_after:
            raise Killed

    pairs: dict[str, Any] = {"pairs": 0.5, "recent": 12, "proxies": 0.5, "restart": 3, "frozen": 1}
    with pytest.raises(Killed):
        train(tmp_path / "killed", progress=kill, **pairs)
    steps: list[int] = []
    again = train(tmp_path / "killed", progress=lambda done, total: steps.append(done), **pairs)
    assert steps[0] == killed_after // 2 * 2 + 1
    assert_same(again, train(tmp_path / "whole", **pairs))
    timeless = [[{**row, "seconds": ""} for row in log(tmp_path / name)] for name in ("killed", "whole")]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in timeless[0]] == ["1", "2", "3", "4", "5", "6"]


def test_a_run_that_had_ended_returns_its_student_at_once(tmp_path: Path):
    first, teacher = train(tmp_path), ToyTeacher()
    again = distil(toy_student(), teacher, Blobs(), settings(), tmp_path)
    assert_same(again, first)
    assert teacher.calls == 0
    stored = load_file(tmp_path / STUDENT)
    assert {name.removeprefix("student/") for name in stored} == set(first.state_dict())


def test_it_stops_when_the_held_out_part_gets_no_better_and_keeps_the_best(tmp_path: Path):
    student = train(tmp_path, steps=50, evaluate_every=1, patience=3, rate=5.0, warm_up=0.0)
    rows = log(tmp_path)
    assert len(rows) == 3
    assert_same(student, train(tmp_path / "start", steps=1, rate=1e-30, weight_decay=0.0, evaluate_every=1))


def test_equal_seeds_give_equal_students(tmp_path: Path):
    assert_same(train(tmp_path / "one"), train(tmp_path / "other"))


def test_a_checkpoint_of_other_settings_is_refused_but_the_device_and_threads_may_change(tmp_path: Path):
    train(tmp_path)
    train(tmp_path, workers=2)
    with pytest.raises(DataError, match=r"checkpoint.safetensors.*another run.*delete it"):
        train(tmp_path, rate=1e-3)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    train(tmp_path)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"checkpoint.safetensors.*whole file"):
        train(tmp_path)


def test_a_loss_that_is_no_number_is_reported(tmp_path: Path):
    with pytest.raises(DataError, match=r"training step \d.*finite loss.*lower distil.rate"):
        train(tmp_path, rate=1e25, warm_up=0.0)


# -- sharing the work ------------------------------------------------------------------------------------------


def test_accumulating_parts_of_a_batch_equals_the_whole_batch(tmp_path: Path):
    whole = train(tmp_path / "whole", relational=0, steps=2)
    parts = train(tmp_path / "parts", relational=0, steps=2, accumulate=4)
    assert_close(parts, whole)


def test_two_processes_with_half_batches_equal_one_with_the_whole(tmp_path: Path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*command, str(tmp_path / "two")], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = toy_student()
    train_shared(tmp_path / "one", one)
    two = load_file(tmp_path / "two" / STUDENT)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two[f"student/{name}"], tensor, atol=2e-5, rtol=1e-4)
    figures = [[row["held_out"] for row in log(tmp_path / name) if row["held_out"]] for name in ("one", "two")]
    assert [float(n) for n in figures[0]] == pytest.approx([float(n) for n in figures[1]], abs=1e-4)


def train_shared(folder: Path, student: ImageStudent) -> None:
    """What ``torchrun`` runs: every loss, captions included."""
    changes = settings(steps=4, rate=1e-3, accumulate=2, pairs=0.5, recent=12, proxies=0.5, restart=2, frozen=1)
    distil(student, ToyTeacher(), Blobs(captions=True), changes, folder, texts=texts)


def assert_close(one: ImageStudent, other: ImageStudent) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], atol=2e-5, rtol=1e-4)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"multiple of 3 .*got 8"):
        train(tmp_path, accumulate=3)


def test_a_restart_after_the_last_step_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"distil.restart: expected at most 6.*got 7"):
        train(tmp_path, restart=7)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="device 'mars'"):
        train(tmp_path, device="mars")


def test_texts_of_another_length_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"6 numbers.*got 5"):
        distil(
            toy_student(),
            ToyTeacher(),
            Blobs(captions=True),
            settings(),
            tmp_path,
            texts=lambda said: np.zeros((len(said), 5), np.float32),
        )


if __name__ == "__main__":
    train_shared(Path(sys.argv[1]), toy_student())
