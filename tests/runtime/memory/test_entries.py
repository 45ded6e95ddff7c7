from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.memory import NewEntry, Space, Where
from edge_ravlm.runtime.memory.entries import MAX_TEXT, unit


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "x" * (MAX_TEXT + 1)},
        {"text": "\ud800"},
        {"text": b"bytes"},
        {"answer": "\udfff"},
        {"answer": 0},
        {"answer": False},
        {"answer": b""},
        {"tags": {"": 1}},
        {"tags": {"a": math.nan}},
        {"tags": {"a": math.inf}},
        {"tags": {"a": 2**63}},
        {"tags": {"a": None}},
        {"tags": {"a": [1]}},
        {"tags": {"a": "\ud800"}},
        {"tags": {"\ud800": 1}},
        {"modality": "smell"},
        {"time": math.nan},
        {"time": "yesterday"},
        {"thumbnail": "not bytes"},
    ],
)
def test_entries_that_could_not_be_kept_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        NewEntry(**{"text": "fine", **wrong})


def test_the_longest_text_and_any_character_are_fine() -> None:
    assert NewEntry("🐈" * MAX_TEXT).text.startswith("🐈")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tags": {"a": math.nan}},
        {"tags": {"a": (1, None)}},
        {"after": math.inf},
        {"modalities": {"smell"}},
        {"tags": {"": None}},
    ],
)
def test_filters_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Where(**wrong)


def test_equal_filters_are_one_cache_key() -> None:
    one = Where(tags={"a": 1, "b": None}, after=0.0, modalities=frozenset({"frame"}), ids=frozenset({1, 2}))
    other = Where(tags={"b": None, "a": True}, after=0, modalities={"frame"}, ids=[2, 1])  # type: ignore[arg-type]
    assert one == other
    assert hash(one) == hash(other)


def test_only_a_filter_with_conditions_filters() -> None:
    assert not Where()
    assert all([Where(tags={"a": None}), Where(after=0), Where(ids=frozenset()), Where(modalities=frozenset())])


def test_a_filter_does_not_follow_the_dict_it_was_made_from() -> None:
    tags = {"a": 1}
    where = Where(tags=tags)
    tags["a"] = 2
    assert where.tags == {"a": 1}


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_vectors_of_any_size_become_unit_vectors(scale: float) -> None:
    row = unit("image", np.array([3.0, 4.0]) * scale, Space("s", 2))
    np.testing.assert_allclose(row, [0.6, 0.8], rtol=1e-6)
    assert row.dtype == np.float32


@pytest.mark.parametrize(
    "vector",
    [[0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [1.0], [[1.0, 2.0]], "text", [], [[1], [2, 3]], None],
)
def test_vectors_without_direction_are_refused(vector: Any) -> None:
    with pytest.raises(UsageError, match="'image' vector"):
        unit("image", vector, Space("s", 2))


def test_spaces_need_an_id_and_a_dimension() -> None:
    for id_, dim in (("", 4), ("ab", 0)):
        with pytest.raises(UsageError):
            Space(id_, dim)
