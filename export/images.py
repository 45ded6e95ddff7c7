"""The pictures of an export: what to learn from, what sets the INT8 ranges, and what only the gate sees."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_ravlm.errors import DataError, FrameError
from edge_ravlm.export.data import datasets
from edge_ravlm.export.data.captioned import captioned
from edge_ravlm.export.data.scenes import Material, at_most, material, object_scenes
from edge_ravlm.export.distil import CloserViews, ComposedScenes, FolderPictures, Pictures, Share, ThingScenes, parted
from edge_ravlm.export.judging import JudgeSet, Task, judge_folder, judge_set, state_tasks
from edge_ravlm.export.recipe import SCENES, THINGS, Recipe
from edge_ravlm.export.teachers.weights import package_source
from edge_ravlm.frames import IMAGE_SUFFIXES, Pixels, read_image
from edge_ravlm.manifest import Source
from edge_ravlm.runtime.transfer import read_rows

SCENE_PACKAGES = ("tuxpaint-stamps", "mate-backgrounds", "lomiri-wallpapers", "opencv-doc")
THING_PACKAGES = (
    *("mapillary-signs", "sweethome3d-furniture", "sweethome3d", "plasma-wallpapers"),
    *("fluent-emoji", "emojibase", "openclipart"),
)

_LONGEST = 640
"""Judged pictures are held in memory at most this large, in pixels of the longer side."""

_SIGN = re.compile(
    r"sign|stop|\bno\b|entry|forbidden|prohibit|crossing|arrow|warning|caution|traffic|button|yield|road|symbol|danger"
)

_USUAL_SIDE = 224
"""Pixels, where the recipe leaves it to the student."""

_ANOTHER = 6.0
"""Mean difference of the pixels, of 255, from which on two cut-outs are not the same."""

_FEWEST = 32
_FIT_SEED, _JUDGE_SEED = 1, 2


@dataclass(frozen=True)
class Gathered:
    """All pictures of one export.

    Attributes:
        training: batches for distillation.
        calibration: uint8 [h, w, 3], of the training part.
        fitting: tasks for the answering constants, of the training part.
        judging: of the held-out part.
        sources: where they came from.
    """

    training: Pictures
    calibration: Sequence[Pixels]
    fitting: Sequence[Task]
    judging: JudgeSet
    sources: tuple[Source, ...]


def gather(recipe: Recipe, base: Path) -> Gathered:
    """Compose scenes, or read the user's folder.

    Args:
        recipe: says which.
        base: the folder that the recipe's paths are relative to.

    Raises:
        DataError: no such folder, too few pictures in it that can be read, or one without a caption.
    """
    if recipe.images.source in (SCENES, THINGS):
        return _scenes(recipe)
    captions = base / recipe.images.captions if recipe.images.captions else None
    return _folder(recipe, base / recipe.images.source, captions)


def own_files(recipe: Recipe, base: Path) -> list[Path]:
    """The user's pictures and the list of their captions; none where scenes are composed. See ``gather``."""
    if recipe.images.source in (SCENES, THINGS):
        return []
    captions = [base / recipe.images.captions] if recipe.images.captions else []
    return captions + _listed(base / recipe.images.source)


def things_training(seed: int, closer: CloserViews | None = None) -> ThingScenes:
    """The training parts of ``traffic``, ``home`` and the stamps, and drawings; fetches what is not cached.

    Signs are most of it: they are told apart by the smallest details. In a mirror they are other signs.

    Args:
        seed: of all random choices.
        closer: how the encoder will look closer, if it does.
    """
    signs, objects, stamps = _things()
    _, learnt = parted(len(signs.objects), 0, seed)
    turned = others_in_a_mirror(signs.objects, learnt)
    shares = (
        Share(signs, 0.45, mirrored=False, together=4),
        Share(objects, 0.12),
        Share(stamps, 0.1),
        Share(Material(turned, signs.backgrounds), 0.15, mirrored=False, together=4),
        Share(Material(_drawings(), signs.backgrounds), 0.18),
    )
    return ThingScenes(shares, seed=seed, closer=closer)


def others_in_a_mirror(cut_outs: Sequence[Pixels], rows: Iterable[int]) -> list[Pixels]:
    """Mirror images that are none of the cut-outs.

    Args:
        cut_outs: uint8 [h, w, 4] BGRA.
        rows: of those to turn.
    """
    seen = np.stack([_thumbnail(cut_out) for cut_out in cut_outs])
    turned = [np.ascontiguousarray(cut_outs[row][:, ::-1]) for row in rows]
    return [one for one in turned if np.abs(seen - _thumbnail(one)).mean(axis=(1, 2, 3)).min() > _ANOTHER]


def _thumbnail(cut_out: Pixels) -> NDArray[np.float32]:
    """On grey, float32 [32, 32, 3]."""
    small = cv2.resize(cut_out, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = small[..., 3:] / 255
    return np.asarray(small[..., :3] * alpha + 127 * (1 - alpha), np.float32)


def _drawings() -> list[Pixels]:
    """Emoji and clip-art, without what looks like a traffic sign: the evaluation's are to be new to the encoder."""
    return [one.pixels for one in captioned(("emoji", "clipart")) if not _SIGN.search(" ".join(one.texts))]


def materials(recipe: Recipe) -> list[Material]:
    """Training parts of cut-outs with backgrounds, whose places in a scene are known."""
    return _things() if recipe.images.source == THINGS else [material()[0]]


def _things() -> list[Material]:
    return [datasets.traffic().train.material, datasets.home().train.material, material()[0]]


def fingerprint(pictures: Sequence[Pixels]) -> str:
    """SHA-256 over pictures, in order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(str(picture.shape).encode() + picture.tobytes())
    return digest.hexdigest()


def _scenes(recipe: Recipe) -> Gathered:
    train, held_out = material()
    rng = np.random.default_rng(recipe.seed)
    calibration, _ = object_scenes(train, 1, recipe.seed + 100)
    chosen = rng.permutation(len(calibration))[: recipe.images.calibration]
    with_things = recipe.images.source == THINGS
    return Gathered(
        training=_things_training(recipe) if with_things else ComposedScenes(train, seed=recipe.seed),
        calibration=[calibration[int(i)] for i in chosen],
        fitting=state_tasks(train, 200, _FIT_SEED),
        judging=judge_set(held_out, each=4, tasks=60, seed=_JUDGE_SEED),
        sources=tuple(package_source(name) for name in (*SCENE_PACKAGES, *(THING_PACKAGES if with_things else ()))),
    )


def _things_training(recipe: Recipe) -> ThingScenes:
    closer = CloserViews(recipe.student.side or _USUAL_SIDE, recipe.closer.side) if recipe.closer.scenes else None
    return things_training(recipe.seed, closer)


def _folder(recipe: Recipe, folder: Path, captions: Path | None) -> Gathered:
    paths = _listed(folder)
    said = None if captions is None else _said(captions, paths)
    # By content of the name, not by order: a picture that is added later does not move the others to the other side.
    held = [path for path in paths if _share_of(path.relative_to(folder)) < recipe.images.held_out]
    train = [path for path in paths if path not in set(held)]
    needed = max(_FEWEST, recipe.images.calibration)
    judged, learnt = _read(held[:400]), _read(train[: max(400, needed)])
    if len(learnt) < needed or len(judged) < _FEWEST // 4:
        raise DataError(
            f"images '{folder}'",
            expected=f"at least {needed} readable pictures to learn from and {_FEWEST // 4} to judge on",
            got=f"{len(learnt)} and {len(judged)} of {len(paths)} files",
            do="add pictures, or lower images.calibration in the recipe",
        )
    return Gathered(
        training=FolderPictures(
            train, seed=recipe.seed, captions=None if said is None else [said[path] for path in train]
        ),
        calibration=learnt[: recipe.images.calibration],
        fitting=judge_folder(learnt, each=0, seed=_FIT_SEED).tasks,
        judging=judge_folder(judged, each=2, seed=_JUDGE_SEED),
        sources=(_own(folder, len(paths)),),
    )


def _own(folder: Path, count: int) -> Source:
    name = os.fsencode(folder.name).decode(errors="replace")  # a manifest is UTF-8
    return Source(name=name, origin=f"{count} pictures of the user", licence="the user's own")


def _said(captions: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """The caption of every picture."""
    rows, base = read_rows(captions)
    listed = {(base / row.image).resolve(): row.text for row in rows if row.image is not None}
    missing = [path for path in paths if path.resolve() not in listed]
    if missing:
        raise DataError(
            f"captions '{captions}'",
            expected=f"a row for each of {len(paths)} pictures",
            got=f"none for {len(missing)} of them, '{missing[0].name}' first",
            do="add their rows, or take the pictures away",
        )
    return {path: listed[path.resolve()] for path in paths}


def _listed(folder: Path) -> list[Path]:
    try:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    except OSError:
        found = []
    if not found:
        raise DataError(
            f"images '{folder}'",
            expected=f"a folder of pictures ({', '.join(sorted(IMAGE_SUFFIXES))})",
            got="none there" if folder.is_dir() else "no such folder",
            do="correct images.source in the recipe",
        )
    return found


def _read(paths: Sequence[Path]) -> list[Pixels]:
    """Those that can be read, reduced to _LONGEST."""
    found = (_read_one(path) for path in paths)
    return [picture for picture in found if picture is not None]


def _read_one(path: Path) -> Pixels | None:
    try:
        return at_most(read_image(path).pixels, _LONGEST)
    except FrameError:
        return None  # it is counted: too few readable ones is an error with the numbers


def _share_of(path: Path) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(path.as_posix())).digest()[:4], "big") / 2**32
