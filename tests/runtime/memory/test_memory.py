from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ravlm.errors import MemoryFault, SpaceMismatch, UsageError
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, Where, filters, index

Make = Callable[..., list[NewEntry]]
RowsMaker = Callable[..., NDArray[np.float32]]


def test_entries_come_back_as_they_were_given(folder: Path, spaces: dict[str, Space], rows: RowsMaker) -> None:
    tags = {
        "kamera": "Einfahrt 🚗",
        "n": 7,
        "ratio": 0.5,
        "whole": 2.0,
        "open": True,
        "big": 2**62,
        "zero": -0.0,
    }
    given = [
        NewEntry(
            "the garage door is open 🚪",
            "open",
            tags,
            "image",
            12.5,
            {"image": rows(1)[0]},
            "cpu-u8",
            b"\xff\xd8",
        ),
        NewEntry("", vectors={"text": rows(1, 8)[0]}, modality="text", time=-0.0),
        NewEntry("nul \0 inside", vectors={"image": rows(1)[0], "text": rows(1, 8)[0]}, modality="audio"),
    ]
    before = time.time()
    with Memory.open(folder, spaces) as memory:
        ids = memory.add(given)
        assert ids == [1, 2, 3]
    with Memory.open(folder, spaces) as memory:
        for got, new in zip(memory.get([3, 1, 2]), (given[2], given[0], given[1]), strict=True):
            for name in ("text", "answer", "tags", "modality", "time", "flavor", "thumbnail"):
                assert getattr(got, name) == getattr(new, name)
        assert memory.get([1])[0].tags["open"] is True
        assert type(memory.get([1])[0].tags["whole"]) is float
        assert abs(memory.get([3])[0].time - before) < 60
        assert [entry.id for entry in memory.entries()] == ids
        assert memory.verify() == []


def test_what_was_added_is_found_at_once(memory: Memory, entries: Make, nearest: Any, answers: Any) -> None:
    given = entries(50)
    ids = memory.add(given)
    vectors = {i: e.vectors["image"] for i, e in zip(ids, given, strict=True)}
    answers(memory.search("image", given[7].vectors["image"], 5), nearest(vectors, given[7].vectors["image"], 5))
    assert memory.search("image", given[7].vectors["image"], 1)[0].id == ids[7]


def test_k_larger_than_the_memory_gives_all_best_first(memory: Memory, entries: Make) -> None:
    memory.add(entries(9))
    for _ in range(2):
        hits = memory.search("image", np.ones(16), 1000)
        assert sorted(hit.id for hit in hits) == list(range(1, 10))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        memory.compact()


def test_equal_scores_are_ordered_by_id_wherever_they_are_stored(memory: Memory, rows: RowsMaker) -> None:
    same = rows(1)[0]
    for _ in range(3):
        memory.add([NewEntry("same", vectors={"image": same}) for _ in range(4)])
        memory.compact()
    memory.add([NewEntry("same", vectors={"image": same * 3})])
    hits = memory.search("image", rows(1, seed=1)[0], 9)
    assert [hit.id for hit in hits] == list(range(1, 10))
    assert len({hit.score for hit in hits}) == 1


def test_an_empty_memory_answers(memory: Memory) -> None:
    memory.compact()
    assert len(memory) == memory.count(Where(tags={"a": 1})) == 0
    assert memory.search("image", np.ones(16), 3) == []
    assert memory.search("image", np.ones(16), 3, Where(after=0)) == []
    assert list(memory.entries()) == memory.get([]) == memory.add([]) == memory.verify() == []
    assert memory.vectors("image", []).shape == (0, 16)
    assert memory.remove([1, 2]) == 0


@pytest.mark.parametrize("compacted", [False, True])
def test_removed_entries_are_gone_at_once(memory: Memory, entries: Make, compacted: bool) -> None:
    given = entries(20)
    ids = memory.add(given)
    if compacted:
        memory.compact()
    assert memory.remove([ids[3], ids[4], ids[4], 999]) == 2
    assert len(memory) == 18
    assert {ids[3], ids[4]}.isdisjoint(hit.id for hit in memory.search("image", given[3].vectors["image"], 20))
    with pytest.raises(MemoryFault, match=f"entry {ids[3]}"):
        memory.get([ids[0], ids[3]])
    with pytest.raises(MemoryFault, match=f"entry {ids[4]}"):
        memory.vectors("image", [ids[4]])
    assert memory.add(given[3:4]) == [21], "ids are never used again"
    memory.compact()
    assert memory.verify() == []


def test_vectors_are_unit_vectors_in_the_order_asked(memory: Memory, rows: RowsMaker) -> None:
    given = rows(6) * 40
    ids = memory.add([NewEntry("", vectors={"image": row}) for row in given[:4]])
    memory.compact()
    ids += memory.add([NewEntry("", vectors={"image": row}) for row in given[4:]])
    got = memory.vectors("image", ids[::-1])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (given / np.linalg.norm(given, axis=1, keepdims=True))[::-1], atol=5e-4)
    with pytest.raises(MemoryFault, match="'text' vector"):
        memory.vectors("text", ids[:1])
    for strange in (0, -1, 2**70):
        with pytest.raises(MemoryFault, match=f"entry {strange},"):
            memory.vectors("image", [ids[0], strange])
        with pytest.raises(MemoryFault, match=f"entry {strange},"):
            memory.get([ids[0], strange])


FILTERS: dict[str, tuple[Where, Callable[[int], bool]]] = {
    "tag": (Where(tags={"side": "left"}), lambda i: i % 2 == 0),
    "one": (Where(tags={"n": 17}), lambda i: i == 17),
    "as Python compares": (Where(tags={"n": 17.0}), lambda i: i == 17),
    "not as text": (Where(tags={"n": "17"}), lambda i: False),
    "any of": (Where(tags={"n": ("17", 17, 18.0)}), lambda i: i in {17, 18}),
    "none of none": (Where(tags={"side": ()}), lambda i: False),
    "two tags": (Where(tags={"side": "right", "n": 17}), lambda i: i == 17),
    "no such tag": (Where(tags={"absent": None}), lambda i: True),
    "has the tag": (Where(tags={"side": None}), lambda i: False),
    "after": (Where(after=1090.0), lambda i: i >= 90),
    "before": (Where(before=1010.0), lambda i: i < 10),
    "window": (Where(after=1010.0, before=1012.0), lambda i: 10 <= i < 12),
    "empty window": (Where(after=5.0, before=1.0), lambda i: False),
    "modality": (Where(modalities=frozenset({"frame", "text"})), lambda i: True),
    "other modality": (Where(modalities=frozenset({"audio"})), lambda i: False),
    "no modality": (Where(modalities=frozenset()), lambda i: False),
    "ids": (Where(ids=frozenset({1, 5, 77, -3, 9999})), lambda i: i + 1 in {1, 5, 77}),
    "all at once": (Where({"side": "left"}, 1020.0, 1060.0, frozenset({"frame"}), frozenset(range(31, 50))),
                    lambda i: i % 2 == 0 and 30 <= i < 49),
}  # fmt: skip


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.usefixtures("graphs")
def test_filters_are_exact(memory: Memory, entries: Make, nearest: Any, nearly: Any, name: str) -> None:
    where, matches = FILTERS[name]
    given = entries(100)
    ids = memory.add(given[:70])
    memory.compact()
    assert len(memory.search("image", np.ones(16), 100, where)) == sum(map(matches, range(70)))
    ids += memory.add(given[70:])
    vectors = {ids[i]: given[i].vectors["image"] for i in range(100) if matches(i)}
    for k in (3, 100):
        nearly(memory.search("image", np.ones(16), k, where), nearest(vectors, np.ones(16), k))
    assert memory.count(where) == len(vectors)
    assert [entry.id for entry in memory.entries(where)] == list(vectors)
    if vectors:
        memory.remove([min(vectors)])
        assert memory.count(where) == len(vectors) - 1 == len(memory.search("image", np.ones(16), 100, where))


def test_one_match_among_20k_is_found(memory: Memory, rows: RowsMaker) -> None:
    given = rows(20_000)
    ids = memory.add(
        [
            NewEntry("", tags={"rare": True} if i == 12_345 else {}, vectors={"image": row})
            for i, row in enumerate(given)
        ]
    )
    where = Where(tags={"rare": True})
    for _ in range(2):
        (hit,) = memory.search("image", -given[12_345], 10, where)
        assert hit.id == ids[12_345]
        assert len(memory.search("image", given[0], 7, Where(tags={"rare": None}))) == 7
        memory.compact()
    exact = np.argsort(-(memory.vectors("image", ids) @ given[:40].T), axis=0)[:10].T
    found = [[hit.id - 1 for hit in memory.search("image", query, 10)] for query in given[:40]]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found, strict=True)])
    assert recall >= 0.99


@pytest.mark.usefixtures("graphs")
def test_a_graph_loses_no_entry(memory: Memory, entries: Make) -> None:
    """A graph made by two threads at once left one of 400 entries on no path in nine of ten builds."""
    for seed in range(5):
        memory.add(entries(200 if seed else 400, seed=seed))
        memory.compact()  # the first graph is new, the others grow out of it
    for entry in memory.entries():
        assert memory.search("image", memory.vectors("image", [entry.id])[0], 1)[0].id == entry.id


@pytest.mark.usefixtures("graphs")
def test_removing_the_nearest_of_a_graph_leaves_the_next_ones(
    memory: Memory, entries: Make, nearest: Any, nearly: Any
) -> None:
    given = entries(400)
    vectors = {i: e.vectors["image"] for i, e in zip(memory.add(given), given, strict=True)}
    memory.compact()
    query = given[0].vectors["image"]
    while len(vectors) > 20:
        for hit in memory.search("image", query, 70):
            del vectors[hit.id]
            memory.remove([hit.id])
            if len(vectors) % 35 == 0:
                break
        nearly(memory.search("image", query, 5), nearest(vectors, query, 5))


@pytest.mark.usefixtures("graphs")
def test_a_graph_grows_by_the_tail_and_is_rebuilt_when_ghosts_are_many(
    memory: Memory, entries: Make, nearest: Any, nearly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    judge = index.worth_extending
    monkeypatch.setattr(index, "worth_extending", lambda *a: kept.append(judge(*a)) or kept[-1])
    vectors: dict[int, NDArray[np.float32]] = {}
    for seed, drop in enumerate((0, 5, 5, 90, 0)):
        given = entries(100, seed=seed)
        vectors |= {i: e.vectors["image"] for i, e in zip(memory.add(given), given, strict=True)}
        removed = list(vectors)[:drop]
        memory.remove(removed)
        vectors = {i: v for i, v in vectors.items() if i not in removed}
        memory.compact()
        for query in list(vectors.values())[::29]:
            nearly(memory.search("image", query, 8), nearest(vectors, query, 8))
    assert kept == [False, True, True, False, True]
    assert memory.verify() == []


def test_the_version_changes_with_the_answers_and_only_then(memory: Memory, entries: Make) -> None:
    seen = [memory.version]
    ids = memory.add(entries(3))
    seen.append(memory.version)
    memory.remove(ids[:1])
    seen.append(memory.version)
    memory.compact()
    seen.append(memory.version)
    assert seen == sorted(set(seen))
    memory.search("image", np.ones(16), 1)
    memory.compact()
    assert memory.verify() == []
    assert memory.version == seen[-1]


def test_stats_count_what_there_is(memory: Memory, entries: Make) -> None:
    memory.add(entries(30))
    memory.compact()
    memory.add(entries(5, seed=1))
    memory.remove([1, 31])
    stats = memory.stats()
    assert (stats.entries, stats.tail, stats.generation) == (33, 4, 1)
    assert stats.fields["image"].vectors == 33
    assert stats.fields["text"].vectors == 0
    assert stats.bytes > 33 * 32


def test_files_that_are_swept_away_while_they_are_counted_count_nothing(
    memory: Memory, folder: Path, entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.add(entries(10))
    memory.compact()
    stat = Path.stat

    def swept(path: Path, **options: Any) -> os.stat_result:
        if path.suffix == ".ids":
            path.unlink(missing_ok=True)
        found = stat(path, **options)
        if path.suffix == ".f16":
            path.unlink()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", swept)
        assert memory.stats().entries == 10


def test_any_iterable_of_entries_is_added_and_one_id_is_removed(memory: Memory, entries: Make) -> None:
    assert memory.add(entry for entry in entries(4)) == [1, 2, 3, 4]
    assert memory.remove(2) == 1
    assert memory.remove(np.int64(3)) == 1
    assert memory.remove(99) == 0
    assert memory.remove(id_ for id_ in (1, 99)) == 1
    assert [entry.id for entry in memory.entries()] == [4]


def test_the_values_of_a_tag_are_told_once_each(memory: Memory, entries: Make) -> None:
    ids = memory.add(entries(9))
    assert memory.tag_values("side") == ["left", "right"]
    assert memory.tag_values("n", 3) == [0, 1, 2]
    assert memory.tag_values("absent") == []
    memory.remove(ids[1::2])
    assert memory.tag_values("side") == ["left"]


def test_compaction_tells_its_progress(memory: Memory, entries: Make) -> None:
    memory.add(entries(30))
    told: list[tuple[int, int]] = []
    memory.compact(lambda done, total: told.append((done, total)))
    assert told[-1] == (30, 30)


@pytest.mark.usefixtures("graphs")
def test_a_growing_tail_is_folded_in_the_background(
    folder: Path, spaces: dict[str, Space], entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_ravlm.runtime.memory.compaction.TAIL_ROWS", 50)
    with Memory.open(folder, spaces) as memory:
        memory.add(entries(60))
    with Memory.open(folder, spaces) as memory:
        assert (memory.stats().tail, memory.stats().generation) == (0, 1)
        for _ in range(40):  # a window that rolls over the tail never makes it larger, but does make it longer
            memory.remove(memory.add(entries(5)))
    with Memory.open(folder, spaces) as memory:
        assert memory.stats().generation > 1
        assert len(memory) == 60


def test_reembedding_replaces_vectors(memory: Memory, entries: Make, nearest: Any, answers: Any) -> None:
    given = entries(12)
    ids = memory.add(given)
    memory.compact()
    better = {i: e.vectors["image"] for i, e in zip(ids, entries(12, seed=5), strict=True)}
    memory.reembed("image", memory.spaces["image"], ids[:6], [better[i] for i in ids[:6]], "trt-s8")
    mixed = {i: better[i] if i in ids[:6] else given[i - 1].vectors["image"] for i in ids}
    for _ in range(2):
        answers(memory.search("image", np.ones(16), 12), nearest(mixed, np.ones(16), 12))
        assert [entry.flavor for entry in memory.get(ids[5:7])] == ["trt-s8", ""]
        assert memory.verify() == []
        memory.compact()
    with pytest.raises(MemoryFault, match="entry 99"):
        memory.reembed("image", memory.spaces["image"], [99], np.ones((1, 16)), "x")


def test_another_encoder_is_refused_until_the_memory_is_reembedded(
    folder: Path, spaces: dict[str, Space], entries: Make, rows: RowsMaker
) -> None:
    with Memory.open(folder, spaces) as memory:
        ids = memory.add(entries(5))
        memory.compact()
    new = Space("ef56" * 16, 12)
    command = re.escape(f"edge-ravlm memory reembed {folder} --bundle BUNDLE")
    with pytest.raises(SpaceMismatch, match=f"ef56ef56ef56 .* ab12ab12ab12 .*{command}"):
        Memory.open(folder, {**spaces, "image": new})
    with pytest.raises(SpaceMismatch):
        Memory.open(folder, {"image": Space(spaces["image"].id, 17)}, read_only=True)
    with Memory.open(folder) as plain, Memory.open(folder, spaces) as other:
        assert plain.spaces == spaces
        plain.reembed("image", new, ids[:4], rows(4, 12), "cpu-u8")
        assert [hit.id for hit in plain.search("image", rows(4, 12)[2], 1)] == [ids[2]]
        assert len(plain.search("image", np.ones(12), 9)) == 4
        with pytest.raises(SpaceMismatch):
            other.search("image", np.ones(16), 1)
    with Memory.open(folder, {**spaces, "image": new}) as memory:
        memory.compact()
        assert len(memory.search("image", np.ones(12), 9)) == 4
        assert memory.verify() == []


def test_a_field_can_be_added_later(folder: Path, spaces: dict[str, Space], rows: RowsMaker) -> None:
    with Memory.open(folder, {"image": spaces["image"]}) as memory, Memory.open(folder, spaces) as later:
        later.add([NewEntry("", vectors={"text": rows(1, 8)[0]})])
        assert len(memory.search("text", np.ones(8), 3)) == 1
    with pytest.raises(UsageError):
        Memory.open(folder, {"../image": spaces["image"]})


def test_wrong_calls_are_refused_and_change_nothing(memory: Memory, entries: Make) -> None:
    good, bad = entries(2), np.zeros(16)
    for vectors in (
        {},
        {"sound": np.ones(4)},
        {"image": bad},
        {"image": np.full(16, np.nan)},
        {"image": np.ones(15)},
    ):
        with pytest.raises(UsageError):
            memory.add([*good, NewEntry("", vectors=vectors)])
    for field, query, k in (
        ("sound", np.ones(16), 1),
        ("image", bad, 1),
        ("image", np.ones(3), 1),
        ("image", np.ones(16), 0),
    ):
        with pytest.raises(UsageError):
            memory.search(field, query, k)
    assert len(memory) == 0


def test_paths_that_are_no_memory_are_refused(tmp_path: Path, spaces: dict[str, Space]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "photos"):
        with pytest.raises(MemoryFault):
            Memory.open(tmp_path / name, spaces)
    for name in ("missing", "empty"):
        with pytest.raises(MemoryFault):
            Memory.open(tmp_path / name, spaces, create=False)
        with pytest.raises(MemoryFault):
            Memory.open(tmp_path / name, spaces, read_only=True)
    assert not (tmp_path / "missing").exists()
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    Memory.open(tmp_path / "empty", spaces).close()
    Memory.open(tmp_path / "a" / "b", spaces).close()


def test_a_closed_memory_says_so(memory: Memory, entries: Make) -> None:
    memory.close()
    memory.close()
    for call in (
        lambda: memory.add(entries(1)),
        lambda: memory.search("image", np.ones(16), 1),
        memory.stats,
        memory.compact,
    ):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_filters_by_ids_do_not_push_out_those_that_are_asked_again_and_again() -> None:
    cache, asked = filters.FilterCache(), list[Where]()

    def fetch(where: Where, above: int) -> NDArray[np.int64]:
        asked.append(where)
        return np.arange(above + 1, 11)

    yard = Where(tags={"camera": "yard"})
    cache.ids(yard, 10, fetch)
    for id_ in range(2 * filters.CACHED_FILTERS):
        cache.ids(Where(ids=frozenset({id_})), 10, fetch)
    cache.ids(yard, 10, fetch)
    assert asked.count(yard) == 1
