"""How a generation's graph is laid out, and how widely it is searched."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ravlm.runtime.memory import Memory, NewEntry, Space, index
from edge_ravlm.runtime.memory.ranking import found_in, near_each_other

Rows = Callable[..., NDArray[np.float32]]


@pytest.mark.parametrize("kept", [[5, 6, 7, 8], [5, 7, 8, 40], [9], []])
def test_ids_are_found_with_and_without_gaps(kept: list[int]) -> None:
    asked = [-(2**62), 0, 4, 5, 6, 8, 9, 40, 41, 2**62]
    places, present = found_in(np.array(kept, np.int64), np.array(asked, np.int64))
    assert present.tolist() == [id_ in kept for id_ in asked]
    assert [kept[at] for at in places[present]] == [id_ for id_ in asked if id_ in kept]


def test_rows_are_ordered_so_that_similar_ones_stand_together(rows: Rows) -> None:
    members = np.repeat(rows(100), 30, axis=0) + 0.1 * rows(3_000, seed=1)
    unit = (members / np.linalg.norm(members, axis=1, keepdims=True)).astype(np.float16)
    shuffled = np.random.default_rng(0).permutation(3_000)
    order = near_each_other(unit, shuffled)
    assert sorted(order.tolist()) == list(range(3_000))
    cluster = order // 30
    assert np.mean(cluster[1:] == cluster[:-1]) > 0.3, "in a random order it would be 0.01"
    np.testing.assert_array_equal(near_each_other(unit, np.array([4, 2, 9])), [4, 2, 9])


def test_equal_rows_can_be_ordered() -> None:
    same = np.full((5_000, 16), 0.25, np.float16)
    assert sorted(near_each_other(same, np.arange(5_000)).tolist()) == list(range(5_000))


@pytest.mark.usefixtures("graphs")
def test_scenes_seen_one_after_another_are_found_without_a_wide_search(folder: Path, rows: Rows) -> None:
    """A graph built in their order, or in that of similarity alone, falls into islands."""
    scenes = np.repeat(rows(150, 64), 20, axis=0)
    seen = scenes + 0.05 * rows(3_000, 64, seed=1)
    with Memory.open(folder, {"image": Space("a", 64)}, auto_compact=False) as memory:
        memory.add([NewEntry("x", vectors={"image": row}) for row in seen])
        memory.compact()
        found = [memory.search("image", scene, 10) for scene in scenes[::20]]
        graph = memory._live.bases()[1]["image"].graphs
    assert np.mean([(hit.id - 1) // 20 == at for at, hits in enumerate(found) for hit in hits]) > 0.99
    assert graph is not None
    assert graph.expansion == index.EXPANSIONS[0]


@pytest.mark.usefixtures("graphs")
def test_vectors_that_are_hard_to_find_are_searched_more_widely(folder: Path, rows: Rows) -> None:
    spaces = {"image": Space("a", 256), "text": Space("b", 256)}
    clusters, scattered = np.repeat(rows(150, 256), 20, axis=0) + 0.3 * rows(3_000, 256), rows(3_000, 256, seed=2)
    with Memory.open(folder, spaces, auto_compact=False) as memory:
        both = zip(clusters, scattered, strict=True)
        memory.add([NewEntry("x", vectors={"image": near, "text": far}) for near, far in both])
        memory.compact()
    with Memory.open(folder, spaces, read_only=True) as memory:
        graphs = {name: base.graphs for name, base in memory._live.bases()[1].items()}
    breadths = {name: graph.expansion for name, graph in graphs.items() if graph is not None}
    assert breadths["image"] == index.EXPANSIONS[0]
    assert breadths["text"] >= 2 * breadths["image"]


@pytest.mark.usefixtures("graphs")
def test_graphs_of_which_nothing_was_measured_are_searched_as_usual(
    folder: Path, spaces: dict[str, Space], entries: Callable[..., list[NewEntry]], rows: Rows
) -> None:
    """As earlier versions have made them."""
    with Memory.open(folder, spaces, auto_compact=False) as memory:
        memory.add(entries(200))
        memory.compact()
        found = memory.search("image", rows(1)[0], 5)
        with memory._writing() as store:
            kept = [file for file in store.files() if not file.name.endswith(".expansion")]
            state = store.state()
            store.set_generation(state.generation, covered=state.covered, gone=0, files=kept)
    with Memory.open(folder, spaces) as memory:
        graph = memory._live.bases()[1]["image"].graphs
        assert graph is not None
        assert graph.expansion == index.USUAL_EXPANSION
        assert memory.search("image", rows(1)[0], 5) == found


@pytest.mark.usefixtures("graphs")
def test_many_rows_are_shared_out_among_graphs(
    monkeypatch: pytest.MonkeyPatch, folder: Path, entries: Callable[..., list[NewEntry]]
) -> None:
    """They are many from 300 on here; what was one graph becomes two, and two are extended as one is."""
    monkeypatch.setattr(index, "LARGE_ROWS", 300)
    built, order = list[int](), index._order
    monkeypatch.setattr(index, "_order", lambda rows, new: built.append(len(new)) or order(rows, new))
    with Memory.open(folder, {"image": Space("a", 16)}, auto_compact=False) as memory:
        graphs = list[list[str]]()
        for seed in range(3):
            memory.add(entries(200, seed=seed))
            memory.compact()
            graphs.append(sorted(path.name for path in folder.glob("generation-*/*.usearch")))
            for entry in memory.entries():
                assert memory.search("image", memory.vectors("image", [entry.id])[0], 1)[0].id == entry.id
        assert memory.verify() == []
        shared = memory._live.bases()[1]["image"].graphs
    assert graphs == [["image.usearch"], *[["image.0.usearch", "image.1.usearch"]] * 2]
    assert built == [200, 400, 200], "a graph cannot become two, but two can grow"
    assert shared is not None
    assert [0.4 < len(part) / 600 < 0.6 for part in shared._parts] == [True, True]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_whatever_ids_are_left_both_graphs_have_their_share(
    monkeypatch: pytest.MonkeyPatch, folder: Path, entries: Callable[..., list[NewEntry]], step: int
) -> None:
    monkeypatch.setattr(index, "LARGE_ROWS", 50)
    with Memory.open(folder, {"image": Space("a", 16)}, auto_compact=False) as memory:
        ids = memory.add(entries(1_000))
        memory.remove([id_ for id_ in ids if id_ % step])
        memory.compact()
        shared = memory._live.bases()[1]["image"].graphs
        assert shared is not None
        assert len(shared) == 1_000 // step
        assert [0.3 < len(part) / len(shared) < 0.7 for part in shared._parts] == [True, True]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("large_rows", [50, 100_000])
def test_callers_at_once_get_their_own_answers(
    monkeypatch: pytest.MonkeyPatch, folder: Path, rows: Rows, large_rows: int
) -> None:
    """From one graph and from several together."""
    monkeypatch.setattr(index, "LARGE_ROWS", large_rows)
    with Memory.open(folder, {"image": Space("a", 64)}, auto_compact=False) as memory:
        memory.add([NewEntry("x", vectors={"image": row}) for row in rows(6_000, 64)])
        memory.compact()
        queries = rows(300, 64, seed=1)
        alone = [memory.search("image", query, 5) for query in queries]
        with ThreadPoolExecutor(6) as callers:
            asked = [at for seed in range(6) for at in np.random.default_rng(seed).permutation(300).tolist()]
            found = list(callers.map(lambda at: memory.search("image", queries[at], 5), asked))
    assert [alone[at] for at in asked] == found
