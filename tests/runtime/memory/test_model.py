"""Any sequence of operations answers as a dictionary of vectors would."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from edge_ravlm.runtime.memory import Memory, NewEntry, Space, Where, index

_SPACES = {"image": Space("image-space", 8), "text": Space("text-space", 4)}
_SIDES = ("left", "right", None)
_wheres = st.builds(
    Where,
    tags=st.dictionaries(st.just("side"), st.sampled_from(_SIDES)),
    after=st.none() | st.integers(0, 40).map(float),
    before=st.none() | st.integers(0, 40).map(float),
    modalities=st.none() | st.sets(st.sampled_from(["frame", "text"])),
    ids=st.none() | st.sets(st.integers(1, 120), max_size=30),
)


class Machine(RuleBasedStateMachine):
    """A memory beside a dictionary: id -> (entry, its vectors as they are stored)."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.random = np.random.default_rng(7)
        self.truth: dict[int, NewEntry] = {}
        self.memory = Memory.open(self.folder / "m", _SPACES, auto_compact=False)
        self.other = Memory.open(self.folder / "m", auto_compact=False)

    @rule(
        n=st.sampled_from([1, 3, 40]),
        side=st.sampled_from(_SIDES),
        fields=st.sampled_from(["i", "t", "it"]),
        at=st.integers(0, 40),
    )
    def add(self, n: int, side: str | None, fields: str, at: int) -> None:
        new = [
            NewEntry(
                f"{at}",
                tags={} if side is None else {"side": side},
                modality="frame" if at % 2 else "text",
                time=float(at),
                vectors={name: self._row(space.dim) for name, space in _SPACES.items() if name[0] in fields},
            )
            for _ in range(n)
        ]
        self.truth.update(zip(self.memory.add(new), new, strict=True))

    @precondition(lambda self: self.truth)
    @rule(data=st.data(), share=st.sampled_from([0.02, 0.3, 1.0]))
    def remove(self, data: st.DataObject, share: float) -> None:
        first = data.draw(st.integers(0, len(self.truth) - 1))
        doomed = sorted(self.truth)[first : first + max(1, int(share * len(self.truth)))]
        assert self.other.remove([*doomed, 10_000]) == len(doomed)
        for id_ in doomed:
            del self.truth[id_]

    @precondition(lambda self: self.truth)
    @rule(data=st.data())
    def reembed(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.truth)), unique=True, max_size=5))
        rows = {id_: self._row(4) for id_ in ids}
        self.memory.reembed("text", _SPACES["text"], ids, [rows[i] for i in ids] or np.empty((0, 4)), "new")
        for id_ in ids:
            old = self.truth[id_]
            self.truth[id_] = NewEntry(
                old.text,
                old.answer,
                old.tags,
                old.modality,
                old.time,
                {**old.vectors, "text": rows[id_]},
                "new",
            )

    @rule()
    def compact(self) -> None:
        self.memory.compact()

    @rule()
    def reopen(self) -> None:
        self.memory.close()
        self.memory = Memory.open(self.folder / "m", _SPACES, auto_compact=False)

    @rule(k=st.sampled_from([1, 5, 1000]), where=st.none() | _wheres, field=st.sampled_from(sorted(_SPACES)))
    def search(self, k: int, where: Where | None, field: str) -> None:
        query = self._row(_SPACES[field].dim)
        unit = query / np.linalg.norm(query)
        matching = {i: e for i, e in self.truth.items() if _matches(i, e, where or Where())}
        scores = {i: float(_stored(e.vectors[field]) @ unit) for i, e in matching.items() if field in e.vectors}
        best = sorted(scores, key=lambda i: (-scores[i], i))[:k]
        for memory in (self.memory, self.other):
            hits = memory.search(field, query, k, where)
            if index.SCAN_ROWS > 1000:
                assert [hit.id for hit in hits] == best
            assert len(hits) == len({hit.id for hit in hits}) == len(best)
            assert len({hit.id for hit in hits} - set(best)) <= 1 + k // 10, "a graph may miss one in ten"
            np.testing.assert_allclose([h.score for h in hits], [scores[h.id] for h in hits], atol=2e-4)
            assert memory.count(where) == len(matching)

    @invariant()
    def holds_what_was_added(self) -> None:
        if not hasattr(self, "truth"):
            return
        assert [e.id for e in self.other.entries()] == sorted(self.truth)
        for id_ in list(self.truth)[::17]:
            (got,) = self.other.get([id_])
            want = self.truth[id_]
            assert (got.text, got.tags, got.modality, got.time, got.flavor) == (
                want.text, want.tags, want.modality, want.time, want.flavor,
            )  # fmt: skip
            for field, vector in want.vectors.items():
                np.testing.assert_allclose(self.other.vectors(field, [id_])[0], _stored(vector), atol=1e-6)

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            problems = self.memory.verify()
            self.memory.close()
            self.other.close()
            shutil.rmtree(self.folder)
            assert problems == []

    def _row(self, dim: int) -> NDArray[np.float32]:
        return self.random.standard_normal(dim).astype(np.float32)


def _matches(id_: int, entry: NewEntry, where: Where) -> bool:
    return (
        all(entry.tags.get(key) == value for key, value in where.tags.items())
        and (where.after is None or entry.time >= where.after)
        and (where.before is None or entry.time < where.before)
        and (where.modalities is None or entry.modality in where.modalities)
        and (where.ids is None or id_ in where.ids)
    )


def _stored(vector: NDArray[Any]) -> NDArray[np.float64]:
    unit = vector.astype(np.float64) / np.linalg.norm(vector.astype(np.float64))
    return unit.astype(np.float32).astype(np.float16).astype(np.float64)


@pytest.mark.parametrize(("scan_rows", "large_rows"), [(32, 100_000), (32, 32), (32, 60), (8192, 100_000)])
def test_any_sequence_of_operations_answers_like_the_model(
    monkeypatch: pytest.MonkeyPatch, scan_rows: int, large_rows: int
) -> None:
    monkeypatch.setattr(index, "SCAN_ROWS", scan_rows)
    monkeypatch.setattr(index, "LARGE_ROWS", large_rows)
    monkeypatch.setattr(index, "ROWS_PER_NODE", 0.25)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
