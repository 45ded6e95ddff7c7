"""One field's part of a generation: immutable rows on disk, and the graph over them when they are many."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.runtime.memory.entries import Ids, Rows, Vector
from edge_ravlm.runtime.memory.ranking import best, cosines, found_in, near_each_other

SCAN_ROWS = 8192
"""Up to so many rows a full scan is as fast as the graph (1 ms at 256 dimensions on x86), and exact."""

CONNECTIVITY = 16

LARGE_ROWS = 200_000
"""Above this a graph gets more care, which doubles its build. At 100,000 rows that brought nothing; at a million,
searches 128 wide then find 0.996 of the true neighbours, where 0.979 was the most that wider ones had found before."""

EXPANSIONS = (64, 96, 128, 192, 256, 384, 512)
"""Graph nodes a search may keep in view. How many it takes depends on the vectors: 64 for 0.998 of the true neighbours
in clusters, 192 for 0.996 on a 24-dimensional manifold (100,000 each). So it is measured for every graph built."""

USUAL_EXPANSION = 192
"""For graphs of which that was not measured."""

_THOROUGH = 1024
_SAMPLE_ROWS = 128
_AGREEMENT = 0.998
"""The smallest expansion is taken with which so many rows find this share of the ten neighbours that a thorough search
finds. Rows that are in the graph find a little more than others do: on the manifold, 0.999 where others find 0.996."""

OVERFETCH = 4
MIN_FETCH = 64
"""i8 distances rank the true top 10 within the first 64; the float16 rows then put them in order."""

ROWS_PER_NODE = 16
"""Scoring this many rows exactly costs what one more node fetched from the graph does."""

SCATTERED_SHARE = 1 / 4
"""Of the rows that enter a graph, so many come first, in random order."""

_BATCH_ROWS = 4096

GHOST_SHARE = 0.2
"""Above this share of removed rows a graph is built anew: they route searches well, but crowd out results."""


class Graph:
    """A USearch HNSW over a verified, mapped file; keys are entry ids, some of removed rows (ghosts)."""

    def __init__(self, file: memoryview, expansion: int = USUAL_EXPANSION) -> None:
        self.expansion = expansion  # until the first search
        self._file = file
        self._library = _usearch()  # imported now, and not while somebody waits for an answer
        self._index: Any = None
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return len(self._opened())

    def nearest(self, query: Vector, count: int) -> Ids:
        """About the `count` nearest keys by i8 cosine, nearest first; safe from several threads at once."""
        matches = self._opened().search(query, count, threads=1)
        return np.asarray(matches.keys, np.int64)

    def copy_to_ram(self, total: int) -> Any:
        """A USearch index with the same content that accepts additions, of `total` rows in the end."""
        return self._library.restore(self._file, view=False, **_build_options(total))

    def _opened(self) -> Any:
        # Viewing walks every node (90 ms per million rows), so it waits for the first search.
        with self._opening:
            if self._index is None:
                self._index = self._library.restore(
                    self._file, view=True, enable_key_lookups=False, expansion_search=self.expansion
                )
            return self._index


@dataclass(frozen=True, eq=False)
class Base:
    """One field's rows of a generation.

    Attributes:
        ids: int64 [n] ascending, memory-mapped.
        rows: float16 [n, D], row i belongs to ids[i], memory-mapped.
        graph: None for SCAN_ROWS rows or fewer.
    """

    ids: Ids
    rows: Rows
    graph: Graph | None

    @classmethod
    def from_files(
        cls, ids: memoryview, rows: memoryview, graph: memoryview | None, expansion: memoryview | None, dim: int
    ) -> Base:
        """From the mapped bytes of verified files; raises ValueError if their sizes do not fit each other."""
        numbers = np.frombuffer(ids, np.int64)
        breadth = USUAL_EXPANSION if expansion is None else int(np.frombuffer(expansion, np.int64).item())
        return cls(
            numbers,
            np.frombuffer(rows, np.float16).reshape(len(numbers), dim),
            None if graph is None else Graph(graph, breadth),
        )

    def search(self, query: Vector, k: int, dead: Ids, matches: Ids | None) -> tuple[Ids, NDArray[np.float32]]:
        """Candidates and their exact cosines, among them the k best.

        Args:
            query: float32 [D], unit length.
            k: how many the caller will keep.
            dead: positions (not ids) that no longer count, ascending.
            matches: ascending ids to choose from; None means all.

        Returns:
            ids int64 [m] in no particular order, scores float32 [m]; m >= min(k, what is left to choose
            from).
        """
        found = self._by_graph(query, k, dead, matches)
        return self._by_scan(query, dead, matches) if found is None else found

    def neighbours(self, position: int, k: int) -> list[int]:
        """Ids of the k rows nearest to one of the rows, without itself."""
        query = self.rows[position].astype(np.float32)
        found, _ = best(*self.search(query, k + 1, np.empty(0, np.int64), None), k + 1)
        return [id_ for id_ in found.tolist() if id_ != self.ids[position]][:k]

    def _by_graph(
        self, query: Vector, k: int, dead: Ids, matches: Ids | None
    ) -> tuple[Ids, NDArray[np.float32]] | None:
        """None when a scan is cheaper, or when too few of the nearest rows are to be chosen from."""
        eligible = len(self.ids) - len(dead)
        eligible = eligible if matches is None else min(eligible, len(matches))
        if self.graph is None or eligible <= SCAN_ROWS:
            return None
        wanted = max(OVERFETCH * k, MIN_FETCH)
        fetch = math.ceil(wanted * len(self.graph) / eligible)
        while fetch * ROWS_PER_NODE < eligible and fetch <= len(self.graph):
            positions = self._choose(self.graph.nearest(query, fetch), dead, matches)
            if len(positions) >= wanted // 2:
                return self.ids[positions], cosines(self.rows[positions], query)
            fetch *= 4
        return None

    def _choose(self, keys: Ids, dead: Ids, matches: Ids | None) -> Ids:
        places, present = found_in(self.ids, keys)
        if matches is not None:
            present &= found_in(matches, keys)[1]
        places = places[present]
        return places[~found_in(dead, places)[1]] if len(dead) else places

    def _by_scan(self, query: Vector, dead: Ids, matches: Ids | None) -> tuple[Ids, NDArray[np.float32]]:
        if matches is None:
            scores = cosines(self.rows, query)
            return np.delete(self.ids, dead), np.delete(scores, dead)
        positions = self._choose(matches, dead, None)
        return self.ids[positions], cosines(self.rows[positions], query)


def build(
    stem: Path,
    batches: Iterable[tuple[Ids, Rows]],
    total: int,
    *,
    previous: Base | None,
    done: Callable[[int], None],
) -> list[Path]:
    """Write one field's files: `stem`.ids, .f16 and, above SCAN_ROWS rows, .usearch and .expansion.

    Args:
        stem: path of the files without their suffix.
        batches: ids ascending over all batches, int64 [b], and rows float16 [b, D].
        total: rows in all batches together.
        previous: a base whose graph is extended by the ids it lacks; its rows must not have changed since.
        done: told a number of rows whenever so many more are finished.

    Returns:
        the files written, not yet synced.
    """
    files = [stem.with_suffix(".ids"), stem.with_suffix(".f16")]
    with files[0].open("wb") as ids_file, files[1].open("wb") as rows_file:
        for ids, rows in batches:
            ids_file.write(ids.tobytes())
            rows_file.write(rows.tobytes())
            if total <= SCAN_ROWS:
                done(len(ids))
    if total > SCAN_ROWS:
        ids = np.memmap(files[0], np.int64, "r")
        rows = np.memmap(files[1], np.float16, "r").reshape(len(ids), -1)
        grown = _Growing(previous, total)
        missing = grown.missing(ids)
        done(len(ids) - len(missing))
        order = _order(rows, missing)
        for start in range(0, len(order), _BATCH_ROWS):
            batch = order[start : start + _BATCH_ROWS]
            grown.add(ids[batch], rows[batch])
            done(len(batch))
        files += [stem.with_suffix(".usearch"), stem.with_suffix(".expansion")]
        grown.save(files[2])
        files[3].write_bytes(np.int64(_least_expansion(ids, rows, files[2])).tobytes())
    return files


def worth_extending(previous: Base | None, total: int, added: Ids) -> bool:
    """Whether the graph of previous, extended by `added` (ids whose vectors are new), would stay good.

    A row that changed cannot be extended: its old vector sits in the graph under the same key.
    """
    if previous is None or previous.graph is None or found_in(previous.ids, added)[1].any():
        return False
    ghosts = len(previous.graph) + len(added) - total
    return 0 <= ghosts <= GHOST_SHARE * total


def _order(rows: Rows, missing: Ids) -> Ids:
    """In which order rows enter the graph: some at random, the others so that similar ones stand together.

    What a search touches then lies on few pages. The rows before them tie far things together: in order of similarity
    alone, or of arrival where a camera looks at one scene after another, the graph falls into islands (on clusters of
    20 near-duplicates searches found 0.68 of the true neighbours, with a quarter at random first 0.94, as many as with
    all at random).
    """
    shuffled = np.random.default_rng(0).permutation(missing)
    scattered = math.ceil(len(shuffled) * SCATTERED_SHARE)
    return np.concatenate([shuffled[:scattered], near_each_other(rows, np.sort(shuffled[scattered:]))])


def _least_expansion(ids: Ids, rows: Rows, file: Path) -> int:
    """The smallest of EXPANSIONS with which a search in this graph finds nearly what a thorough one does."""
    graph = np.memmap(file, np.uint8, "r").data
    sample = range(0, len(ids), math.ceil(len(ids) / _SAMPLE_ROWS))

    def neighbours(expansion: int) -> set[tuple[int, int]]:
        base = Base(ids, rows, Graph(graph, expansion))
        return {(at, id_) for at in sample for id_ in base.neighbours(at, 10)}

    thorough = neighbours(_THOROUGH)
    enough = (size for size in EXPANSIONS if len(thorough & neighbours(size)) >= _AGREEMENT * len(thorough))
    return next(enough, EXPANSIONS[-1])


class _Growing:
    """A graph in RAM that takes the rows it lacks."""

    def __init__(self, previous: Base | None, total: int) -> None:
        self._options = _build_options(total)
        if previous is None or previous.graph is None:
            self._known: Ids = np.empty(0, np.int64)
            self._index: Any = None
        else:
            self._known = previous.ids
            self._index = previous.graph.copy_to_ram(total)

    def missing(self, ids: Ids) -> Ids:
        """Which positions of ids it lacks, ascending."""
        return np.flatnonzero(~found_in(self._known, ids)[1])

    def add(self, ids: Ids, rows: Rows) -> None:
        if self._index is None:
            # Rows have length one, so the inner product is the cosine, at a third of its arithmetic.
            self._index = _usearch()(ndim=rows.shape[1], metric="ip", dtype="i8", **self._options)
        # Two threads lose a few rows of nearly every build: stored, but on no path (USearch issue 735). One
        # thread loses none, and is slower by less than the threads are many (1.6x on two cores).
        self._index.add(ids, rows.astype(np.float32), threads=1)

    def save(self, file: Path) -> None:
        """Write the graph; raises OSError if the disk refuses, which USearch calls a RuntimeError."""
        try:
            self._index.save(str(file))
        except RuntimeError as error:
            raise OSError(f"{file.name}: {error}") from error
        if file.stat().st_size != self._index.serialized_length:
            raise OSError(f"{file.name} was cut short")


def _usearch() -> Any:
    """USearch's index; a memory without a graph does without its import, which brings a web client along (50 ms)."""
    from usearch.index import Index  # noqa: PLC0415

    return Index


def expansion_add(total: int) -> int:
    """How many neighbours are considered when a row enters a graph of so many rows."""
    return 128 if total > LARGE_ROWS else 64


def _build_options(total: int) -> dict[str, Any]:
    return {"connectivity": CONNECTIVITY, "expansion_add": expansion_add(total)}
