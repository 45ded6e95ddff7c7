"""Recipes: everything an export depends on, as one validated TOML file that ends up inside the bundle."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_ravlm.errors import DataError
from edge_ravlm.export.align.settings import AlignSettings
from edge_ravlm.export.distil import DistilSettings
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.parity import Gate
from edge_ravlm.export.students import STUDENTS
from edge_ravlm.export.students.closer import CloserSettings
from edge_ravlm.preprocess import Side

AUTO = "auto"
"""A student's kind that is still to be measured."""

SCENES, THINGS = "scenes", "things"
"""In place of a folder: pictures that are composed from packages; ``things`` also learns signs and a home's objects,
in harder scenes."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A misspelt key is an error, not a default."""


class Images(_Strict, frozen=True):
    """The pictures to learn from and to judge on.

    Attributes:
        source: ``scenes`` or ``things`` (composed from packages), or a folder of pictures, relative to the recipe; no
            labels needed.
        calibration: how many of the training pictures set the INT8 ranges.
        held_out: share of a folder's pictures that only the gate sees; composed ones have a half of their own for that.
        captions: a ``.csv`` or ``.jsonl`` list with columns ``image`` and ``text``, relative to the recipe, with a row
            for each of a folder's pictures; the student is then aimed at its captions' text embeddings too.
    """

    source: str = SCENES
    calibration: Annotated[int, msgspec.Meta(ge=16)] = 96
    held_out: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.2
    captions: str = ""


class Teachers(_Strict, frozen=True):
    """What the students learn from; names as ``edge_ravlm.export.teachers`` knows them.

    Attributes:
        image: the image teacher; empty ships the student's own weights, only whitened for these pictures.
        side: its input size in pixels; 0 takes the published one.
        text: the sentence teacher.
    """

    image: str = ""
    side: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    text: str = "minilm-l6"


class Student(_Strict, frozen=True):
    """The image student.

    Attributes:
        kind: a name of ``edge_ravlm.export.students``, or ``auto``: the most accurate that is measured to fit.
        side: of its square input in pixels; without it the kind's own.
        dim: length of an embedding.
        budget_ms: for one picture through the INT8 encoder on one thread; only ``auto`` asks.
    """

    kind: str = "efficientnet-lite0"
    side: Side | None = None
    dim: Annotated[int, msgspec.Meta(ge=16, le=2048)] = 256
    budget_ms: Annotated[float, msgspec.Meta(gt=0)] = 20.0


class Text(_Strict, frozen=True):
    """The text student.

    Attributes:
        corpus: ``everyday`` (our sentences and an encyclopedia's), or a UTF-8 file with a sentence a line.
        vocab: word pieces to keep.
        dim: length of an embedding.
    """

    corpus: str = "everyday"
    vocab: Count = 16_000
    dim: Annotated[int, msgspec.Meta(ge=16, le=1024)] = 256


class Quantization(_Strict, frozen=True):
    """How the INT8 models are made.

    Attributes:
        calibration: how activation ranges are chosen; ``best`` tries all that a flavour has and keeps the one that
            comes nearest to full precision.
        keep_float: names of layers that stay in floating point, by flavour.
    """

    calibration: Literal["best", "minmax", "percentile", "entropy"] = "minmax"
    keep_float: dict[str, list[str]] = {}


class Recipe(_Strict, frozen=True):
    """A whole recipe; what is left out of the file is as here."""

    name: Name
    images: Images = Images()
    teacher: Teachers = Teachers()
    student: Student = Student()
    distil: DistilSettings = DistilSettings()
    text: Text = Text()
    align: AlignSettings = AlignSettings()
    closer: CloserSettings = CloserSettings()
    quantize: Quantization = Quantization()
    fusion: FusionSettings = FusionSettings()
    gate: Gate = Gate()
    seed: int = 0


def read_recipe(path: str | Path) -> tuple[Recipe, bytes]:
    """A recipe and its bytes, from a file or by the name of one that ships with the package.

    Raises:
        DataError: no such file, no TOML, an unknown key or a value out of range; the message names it.
    """
    shipped = Path(str(package_files("edge_ravlm.export"))) / "recipes"
    known = sorted(file.stem for file in shipped.glob("*.toml"))
    own = Path(path)
    try:
        data = (shipped / f"{path}.toml" if str(path) in known and not own.is_file() else own).read_bytes()
        return _checked(msgspec.toml.decode(data, type=Recipe)), data
    except OSError as error:
        raise DataError(
            f"recipe '{path}'",
            expected=f"a TOML file or one of {', '.join(known)}",
            got=error.strerror or str(error),
            do="check the path",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise DataError(
            f"recipe '{path}'",
            expected="a valid recipe",
            got=str(error),
            do="correct it; the recipes in the package show every key",
        ) from None


def _checked(recipe: Recipe) -> Recipe:
    """The recipe; raises ValueError for what its types alone do not tell."""
    student = recipe.student
    if student.kind not in {AUTO, *STUDENTS}:
        raise ValueError(f"student.kind '{student.kind}', which is none of {AUTO}, {', '.join(STUDENTS)}")
    if recipe.images.captions and recipe.text.dim != student.dim:
        raise ValueError(f"text.dim {recipe.text.dim} and student.dim {student.dim}, which captions want to be equal")
    if recipe.images.captions and recipe.images.source in (SCENES, THINGS):
        raise ValueError(f"images.captions with images.source '{recipe.images.source}', whose pictures have none")
    if recipe.images.captions and not recipe.teacher.image:
        raise ValueError("images.captions without teacher.image: nothing would learn from them")
    side = student.side or min(kind.side for kind in STUDENTS.values() if student.kind in (AUTO, kind.name))
    if recipe.closer.scenes and recipe.closer.side >= side:
        raise ValueError(f"closer.side {recipe.closer.side}, which is to be smaller than the student's {side} pixels")
    if recipe.fusion.width % recipe.fusion.heads:
        raise ValueError(f"fusion.width {recipe.fusion.width}, which {recipe.fusion.heads} heads cannot share")
    return recipe
