"""One field's part of a generation: immutable rows on disk, and graphs over them when they are many."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.runtime.memory.entries import Ids, Rows, Vector
from edge_ravlm.runtime.memory.ranking import best, cosines, found_in, near_each_other
from edge_ravlm.runtime.processors import usable

SCAN_ROWS = 8192
"""Up to so many rows a full scan is as fast as the graph (1 ms at 256 dimensions on x86), and exact."""

CONNECTIVITY = 16

LARGE_ROWS = 200_000
"""Above this a graph gets more care, which doubles its build. At 100,000 rows that brought nothing; at a million,
searches 128 wide then find 0.996 of the true neighbours, where 0.979 was the most that wider ones had found before."""

LARGE_GRAPHS = 2
"""Above LARGE_ROWS the rows are shared out among so many graphs, which are built and searched side by side. Half of the
neighbours lie in each, so that a narrower search finds as many."""

EXPANSIONS = (64, 96, 128, 192, 256, 384, 512)
"""Graph nodes a search may keep in view. How many it takes depends on the vectors: 64 for 0.998 of the true neighbours
in clusters, 192 for 0.996 on a 24-dimensional manifold (100,000 each). So it is measured for every graph built."""

USUAL_EXPANSION = 192
"""For graphs of which that was not measured."""

_THOROUGH = 1024
_SAMPLE_ROWS, _SAMPLE_SHARE = (128, 1024), 1 / 200
"""Rows that this is measured with: this share of all, but at least and at most so many. A search misses a whole cluster
or nothing: of a million, 128 rows said 1.0 where 1,024 said 0.991 (and queries found 0.986)."""

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

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio."""

GHOST_SHARE = 0.2
"""Above this share of removed rows a graph is built anew: they route searches well, but crowd out results."""


class Graphs:
    """USearch HNSWs over verified, mapped files; keys are entry ids, some of removed rows (ghosts).

    Args:
        files: a graph each; the rows are shared out among them by id.
        expansion: how widely each is searched; may be changed until the first search.
    """

    def __init__(self, files: Sequence[memoryview], expansion: int = USUAL_EXPANSION) -> None:
        self.expansion = expansion
        self._files = files
        self._library = _usearch()  # imported now, and not while somebody waits for an answer
        self._parts: list[Any] = []
        self._together: Any = None
        self._opening, self._searching = threading.Lock(), threading.Lock()

    @property
    def count(self) -> int:
        """How many graphs."""
        return len(self._files)

    def __len__(self) -> int:
        """How many rows, with those of ghosts."""
        self._opened()
        return sum(map(len, self._parts))

    def nearest(self, query: Vector, count: int) -> Ids:
        """About the `count` nearest keys by i8 cosine, nearest first; safe from several threads at once.

        Keys of equal distance come in any order: of several graphs, that of who finished first.
        """
        together = self._opened()
        threads = min(self.count, len(usable()) or 1)
        # A single index gives every caller room of its own to search in; of several together USearch does not say so.
        with self._searching if self.count > 1 else nullcontext():
            return np.asarray(together.search(query, count, threads=threads).keys, np.int64)

    def copies_in_ram(self, total: int) -> list[Any]:
        """USearch indexes with the same content that accept additions, of `total` rows in the end."""
        return [self._library.Index.restore(file, view=False, **_build_options(total)) for file in self._files]

    def _opened(self) -> Any:
        # Viewing walks every node (90 ms per million rows), so it waits for the first search.
        with self._opening:
            if self._together is None:
                options = {"view": True, "enable_key_lookups": False, "expansion_search": self.expansion}
                self._parts = [self._library.Index.restore(file, **options) for file in self._files]
                self._together = self._parts[0] if len(self._parts) == 1 else self._library.Indexes(self._parts)
            return self._together


@dataclass(frozen=True, eq=False)
class Base:
    """One field's rows of a generation.

    Attributes:
        ids: int64 [n] ascending, memory-mapped.
        rows: float16 [n, D], row i belongs to ids[i], memory-mapped.
        graphs: None for SCAN_ROWS rows or fewer.
    """

    ids: Ids
    rows: Rows
    graphs: Graphs | None

    @classmethod
    def from_files(
        cls, ids: memoryview, rows: memoryview, graphs: Sequence[memoryview], expansion: memoryview | None, dim: int
    ) -> Base:
        """From the mapped bytes of verified files; raises ValueError if their sizes do not fit each other."""
        numbers = np.frombuffer(ids, np.int64)
        breadth = USUAL_EXPANSION if expansion is None else int(np.frombuffer(expansion, np.int64).item())
        return cls(
            numbers,
            np.frombuffer(rows, np.float16).reshape(len(numbers), dim),
            Graphs(graphs, breadth) if graphs else None,
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
        if self.graphs is None or eligible <= SCAN_ROWS:
            return None
        wanted = max(OVERFETCH * k, MIN_FETCH)
        fetch = math.ceil(wanted * len(self.graphs) / eligible)
        while fetch * ROWS_PER_NODE < eligible and fetch <= len(self.graphs):
            positions = self._choose(self.graphs.nearest(query, fetch), dead, matches)
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
    """Write one field's files: `stem`.ids, .f16 and, above SCAN_ROWS rows, .usearch (or .0.usearch, …) and .expansion.

    Args:
        stem: path of the files without their suffix.
        batches: ids ascending over all batches, int64 [b], and rows float16 [b, D].
        total: rows in all batches together.
        previous: a base whose graphs are extended by the ids they lack; its rows must not have changed since.
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
        graphs = grown.save(stem)
        breadth = stem.with_suffix(".expansion")
        breadth.write_bytes(np.int64(_least_expansion(ids, rows, graphs)).tobytes())
        files += [*graphs, breadth]
    return files


def worth_extending(previous: Base | None, total: int, added: Ids) -> bool:
    """Whether the graphs of previous, extended by `added` (ids whose vectors are new), would stay good.

    A row that changed cannot be extended: its old vector sits in a graph under the same key.
    """
    if previous is None or previous.graphs is None or found_in(previous.ids, added)[1].any():
        return False
    if previous.graphs.count != graph_count(total):
        return False
    ghosts = len(previous.graphs) + len(added) - total
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


def _least_expansion(ids: Ids, rows: Rows, files: Sequence[Path]) -> int:
    """The smallest of EXPANSIONS with which a search in these graphs finds nearly what a thorough one does."""
    graphs = [np.memmap(file, np.uint8, "r").data for file in files]
    least, most = _SAMPLE_ROWS
    sample = range(0, len(ids), math.ceil(len(ids) / min(most, max(least, int(len(ids) * _SAMPLE_SHARE)))))

    def neighbours(expansion: int) -> set[tuple[int, int]]:
        base = Base(ids, rows, Graphs(graphs, expansion))
        return {(at, id_) for at in sample for id_ in base.neighbours(at, 10)}

    thorough = neighbours(_THOROUGH)
    enough = (size for size in EXPANSIONS if len(thorough & neighbours(size)) >= _AGREEMENT * len(thorough))
    return next(enough, EXPANSIONS[-1])


class _Growing:
    """Graphs in RAM that take the rows they lack."""

    def __init__(self, previous: Base | None, total: int) -> None:
        self._options = _build_options(total)
        self._count = graph_count(total)
        self._known: Ids = np.empty(0, np.int64)
        self._parts: list[Any] = []
        if previous is not None and previous.graphs is not None:
            self._known, self._parts = previous.ids, previous.graphs.copies_in_ram(total)

    def missing(self, ids: Ids) -> Ids:
        """Which positions of ids they lack, ascending."""
        return np.flatnonzero(~found_in(self._known, ids)[1])

    def add(self, ids: Ids, rows: Rows) -> None:
        if not self._parts:
            # Rows have length one, so the inner product is the cosine, at a third of its arithmetic.
            options = {"ndim": rows.shape[1], "metric": "ip", "dtype": "i8", **self._options}
            self._parts = [_usearch().Index(**options) for _ in range(self._count)]

        def grow(number: int) -> None:
            own = _graph_of(ids, self._count) == number
            # Two threads lose a few rows of nearly every build: stored, but on no path (USearch issue 735). One thread
            # a graph loses none.
            self._parts[number].add(ids[own], rows[own].astype(np.float32), threads=1)

        with ThreadPoolExecutor(self._count) as side_by_side:
            list(side_by_side.map(grow, range(self._count)))

    def save(self, stem: Path) -> list[Path]:
        """Write the graphs; raises OSError if the disk refuses, which USearch calls a RuntimeError."""
        numbers = [""] if self._count == 1 else [f".{number}" for number in range(self._count)]
        files = [stem.with_suffix(f"{number}.usearch") for number in numbers]
        for part, file in zip(self._parts, files, strict=True):
            try:
                part.save(str(file))
            except RuntimeError as error:
                raise OSError(f"{file.name}: {error}") from error
            if file.stat().st_size != part.serialized_length:
                raise OSError(f"{file.name} was cut short")
        return files


def _usearch() -> Any:
    """USearch's indexes; a memory without a graph does without its import, which brings a web client along (50 ms)."""
    import usearch.index  # noqa: PLC0415

    return usearch.index


def graph_count(total: int) -> int:
    """Among how many graphs so many rows are shared out."""
    return LARGE_GRAPHS if total > LARGE_ROWS else 1


def _graph_of(ids: Ids, count: int) -> Ids:
    """The graph that each row belongs to: about as many to each, whatever pattern the ids have (Fibonacci hashing)."""
    return np.asarray((ids.astype(np.uint64) * _GOLDEN >> np.uint64(32)) % np.uint64(count), np.int64)


def expansion_add(total: int) -> int:
    """How many neighbours are considered when a row enters a graph of so many rows."""
    return 128 if total > LARGE_ROWS else 64


def _build_options(total: int) -> dict[str, Any]:
    return {"connectivity": CONNECTIVITY, "expansion_add": expansion_add(total)}
