"""What goes into a memory and what comes out of it."""

from __future__ import annotations

import math
import operator
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_ravlm.errors import UsageError

MAX_TEXT = 10_000
"""Longest text or answer of an entry, in characters: a sentence or a page, never a document."""

MODALITIES = ("frame", "image", "text", "audio")

Tag = str | int | float | bool
Ids = NDArray[np.int64]
Rows = NDArray[np.float16]
Vector = NDArray[np.float32]

_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Space:
    """Which encoder output a vector came from; only vectors of one space can be compared.

    Attributes:
        id: hash over the encoder's weights, preprocessing and output definition.
        dim: length of its vectors.
    """

    id: str
    dim: int

    def __post_init__(self) -> None:
        if not self.id or self.dim < 1:
            raise UsageError(
                "space",
                expected="an id and one dimension or more",
                got=f"id '{self.id}' with {self.dim} dimensions",
                do="take the space from the bundle's manifest",
            )


@dataclass(frozen=True, slots=True, eq=False)
class NewEntry:
    """An entry to be added.

    Attributes:
        text: what the entry says, at most MAX_TEXT characters.
        answer: the short answer it stands for, if it has one.
        tags: name to string, whole number (64 bits), finite number or truth value.
        modality: one of MODALITIES.
        time: when it was observed, unix seconds.
        vectors: field name to float32 [dim of that field's space]; any length above zero, stored as unit
            vectors in float16.
        flavor: the quantization flavour that embedded it.
        thumbnail: a small JPEG.

    Raises:
        UsageError: a value outside these bounds, or text that UTF-8 cannot hold.
    """

    text: str
    answer: str | None = None
    tags: Mapping[str, Tag] = field(default_factory=dict)
    modality: str = "frame"
    time: float = field(default_factory=time.time)
    vectors: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    flavor: str = ""
    thumbnail: bytes | None = None

    def __post_init__(self) -> None:
        _check_text("entry text", self.text)
        _check_text("entry answer", "" if self.answer is None else self.answer)
        _check_text("entry flavor", self.flavor)
        for name, value in self.tags.items():
            check_tag(name, value)
        check_modality(self.modality)
        check_time("entry time", self.time)
        if self.thumbnail is not None and not isinstance(self.thumbnail, bytes):
            raise UsageError(
                "entry thumbnail",
                expected="JPEG bytes",
                got=type(self.thumbnail).__name__,
                do="encode the picture with cv2.imencode",
            )


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as it was remembered; the attributes are NewEntry's, without the vectors."""

    id: int
    text: str
    answer: str | None
    tags: Mapping[str, Tag]
    modality: str
    time: float
    flavor: str
    thumbnail: bytes | None


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result.

    Attributes:
        id: the entry.
        score: cosine between the query and the stored float16 row, in float32.
        shared: how much rare words of the query's text the entry repeats, see ``words.rarities``.
    """

    id: int
    score: float
    shared: float = 0.0


@dataclass(frozen=True, slots=True)
class Where:
    """Which entries to look at; all conditions hold at once, an empty Where matches everything.

    Attributes:
        tags: tag name to the value it must equal (as Python compares them), or to a tuple of values that are all right;
            None means "has no such tag".
        after: unix seconds; entries at this time or later.
        before: unix seconds; entries strictly earlier.
        modalities: any of these; None means all.
        ids: only these entries; None means all.
    """

    tags: Mapping[str, Tag | tuple[Tag, ...] | None] = field(default_factory=dict)
    after: float | None = None
    before: float | None = None
    modalities: frozenset[str] | None = None
    ids: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tags, Mapping):
            raise UsageError(
                "filter tags",
                expected="a mapping of names to values",
                got=repr(self.tags)[:80],
                do="give for instance {'a': 'b'}",
            )
        for name, value in self.tags.items():
            check_tag(name, "")
            for choice in choices(value):
                check_tag(name, choice)
        for moment in (self.after, self.before):
            check_time("filter time", 0.0 if moment is None else moment)
        for modality in self.modalities or ():
            check_modality(modality)
        object.__setattr__(self, "tags", dict(self.tags))
        if self.modalities is not None:
            object.__setattr__(self, "modalities", frozenset(self.modalities))
        if self.ids is not None:
            object.__setattr__(self, "ids", frozenset(whole(self.ids)))

    def __hash__(self) -> int:
        return hash((frozenset(self.tags.items()), self.after, self.before, self.modalities, self.ids))

    def __bool__(self) -> bool:
        """Whether it constrains anything."""
        limits = (self.after, self.before, self.modalities, self.ids)
        return bool(self.tags) or any(limit is not None for limit in limits)


def choices(value: Tag | tuple[Tag, ...] | None) -> tuple[Tag, ...]:
    """The values that a filter's tag may have; none where there must be no such tag."""
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def whole(ids: Iterable[int]) -> list[int]:
    """Ids as plain numbers; raises UsageError when they are something else, such as a text or fractions."""
    try:
        return [operator.index(id_) for id_ in ids]
    except TypeError:
        raise UsageError(
            "ids", expected="whole numbers", got=repr(ids)[:80], do="give those that teaching or a search returned"
        ) from None


def check_tag(name: str, value: Tag) -> None:
    """Raise UsageError unless name and value are what a tag may be."""
    _check_text("tag name", name)
    if isinstance(value, str):
        _check_text(f"tag '{name}'", value)
    usable = isinstance(value, str | int | float)
    if isinstance(value, float):
        usable = math.isfinite(value)
    elif isinstance(value, int):
        usable = -(2**63) <= value < 2**63
    if not name or not usable:
        raise UsageError(
            f"tag '{name}'",
            expected="a name with a string, a 64-bit whole number, a finite number or a truth value",
            got=repr(value)[:80],
            do="turn the value into a string",
        )


def check_modality(modality: str) -> None:
    """Raise UsageError unless modality is one of MODALITIES."""
    if modality not in MODALITIES:
        raise UsageError("modality", expected=" or ".join(MODALITIES), got=f"'{modality}'", do="choose one of these")


def check_time(what: str, seconds: float) -> None:
    """Raise UsageError unless seconds is a finite number."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise UsageError(what, expected="unix seconds", got=repr(seconds), do="pass what time.time() returns")


def check_field_name(name: str) -> None:
    """Raise UsageError unless name can also name files."""
    if not _FIELD_NAME.fullmatch(name):
        raise UsageError(
            f"field '{name}'",
            expected="lower-case letters, digits and underscores, at most 32",
            got=f"'{name}'",
            do="rename the field",
        )


def unit(field_name: str, vector: ArrayLike, space: Space) -> Vector:
    """A checked copy of length one, float32 [dim].

    Raises:
        UsageError: not `dim` numbers, a number that is not finite, or all of them zero.
    """
    try:
        row = np.asarray(vector, np.float64)
    except (TypeError, ValueError):
        row = np.empty(0)
    peak = float(np.abs(row).max()) if row.shape == (space.dim,) else math.nan
    if not math.isfinite(peak) or peak == 0:
        fault = "numbers that are all zero or not finite" if row.shape == (space.dim,) else f"shape {row.shape}"
        raise UsageError(
            f"'{field_name}' vector",
            expected=f"{space.dim} finite numbers that are not all zero",
            got=fault,
            do="pass the encoder's output unchanged",
        )
    row = row / peak  # so that squares of very large or very small numbers stay in range
    return np.asarray(row / np.linalg.norm(row), np.float32)


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str):
        raise UsageError(what, expected="text", got=type(text).__name__, do="pass a string")
    if len(text) > MAX_TEXT:
        raise UsageError(
            what,
            expected=f"at most {MAX_TEXT} characters",
            got=str(len(text)),
            do="split it into several entries",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            what,
            expected="text that UTF-8 can hold",
            got="half of a surrogate pair",
            do="decode it with errors='replace'",
        ) from None
