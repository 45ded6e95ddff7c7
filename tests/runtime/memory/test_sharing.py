"""Several handles, processes and threads on one memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_ravlm.runtime.memory import Memory, NewEntry, Space, Where, compaction, index

Make = Callable[..., list[NewEntry]]

_OTHER = """
import sys
import numpy as np
from edge_ravlm.runtime.memory import Memory, NewEntry, Space
with Memory.open(sys.argv[1]) as memory:
    memory.remove([2])
    memory.add([NewEntry("from elsewhere", tags={"who": "other"}, vectors={"image": np.arange(1, 17)})])
    if sys.argv[2] == "compact":
        memory.compact()
"""


@pytest.mark.parametrize("how", ["plain", "compact"])
@pytest.mark.parametrize("read_only", [False, True])
def test_another_process_changes_show_at_the_next_search(
    memory: Memory, folder: Path, spaces: dict[str, Space], entries: Make, run: Any, how: str, read_only: bool
) -> None:
    memory.add(entries(3))
    with Memory.open(folder, spaces, read_only=read_only) as seen:
        version = seen.version
        assert seen.search("image", np.ones(16), 9, Where(tags={"who": "other"})) == []
        done = run(_OTHER, folder, how)
        assert done.returncode == 0, done.stderr
        assert seen.version > version
        assert {hit.id for hit in seen.search("image", np.ones(16), 9)} == {1, 3, 4}
        assert [hit.id for hit in seen.search("image", np.ones(16), 9, Where(tags={"who": "other"}))] == [4]
        assert seen.get([4])[0].text == "from elsewhere"


def test_handles_follow_each_other_through_everything(
    memory: Memory, folder: Path, spaces: dict[str, Space], entries: Make
) -> None:
    with Memory.open(folder, spaces, auto_compact=False) as other:
        for step in range(4):
            writer, reader = (memory, other) if step % 2 else (other, memory)
            ids = writer.add(entries(20, seed=step))
            assert {hit.id for hit in reader.search("image", np.ones(16), 1000)} >= set(ids)
            if step > 1:
                writer.compact()
            reader.remove(ids[:5])
            assert len(writer.search("image", np.ones(16), 1000)) == len(reader) == 15 * (step + 1)
        assert memory.verify() == other.verify() == []


@pytest.mark.usefixtures("graphs")
def test_searches_go_on_during_compactions(memory: Memory, entries: Make) -> None:
    given = entries(300)
    ids = memory.add(given)
    faults: list[BaseException] = []
    stop = threading.Event()

    def look(offset: int) -> None:
        try:
            while not stop.is_set():
                i = offset = (offset + 7) % 100
                hits = memory.search("image", given[i].vectors["image"], 3, Where(ids=frozenset(ids)))
                assert hits[0].id == ids[i]
                assert memory.search("image", given[i].vectors["image"], 2)[0].id == ids[i]
                assert memory.get([ids[i]])[0].text == f"entry {i}"
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=look, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for step in range(6):
        extra = memory.add(entries(40, seed=step + 1))
        memory.compact()
        memory.remove(extra)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(memory) == 300


@pytest.mark.usefixtures("graphs")
def test_what_changes_during_a_compaction_is_kept(
    memory: Memory, entries: Make, nearest: Any, nearly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = entries(120)
    vectors = {i: e.vectors["image"] for i, e in zip(memory.add(given[:100]), given, strict=False)}
    publish = compaction.publish

    def late(*args: Any) -> bool:
        # Through another handle: this one's own lock is held while publishing.
        with Memory.open(args[1], auto_compact=False) as other:
            new = other.add(given[100:])
            other.remove([5, new[0]])
        vectors.update({i: e.vectors["image"] for i, e in zip(new, given[100:], strict=True)})
        del vectors[5], vectors[new[0]]
        return publish(*args)

    monkeypatch.setattr(compaction, "publish", late)
    memory.compact()
    monkeypatch.undo()
    assert memory.stats().tail == 19
    nearly(
        memory.search("image", given[4].vectors["image"], 200),
        nearest(vectors, given[4].vectors["image"], 200),
    )
    memory.compact()
    assert memory.verify() == []
    nearly(
        memory.search("image", given[4].vectors["image"], 200),
        nearest(vectors, given[4].vectors["image"], 200),
    )


def test_a_compaction_overtaken_by_another_encoder_is_dropped(
    memory: Memory, entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = memory.add(entries(10))
    publish = compaction.publish
    new = Space("99" * 32, 4)

    def late(*args: Any) -> bool:
        with Memory.open(args[1], auto_compact=False) as other:
            other.reembed("text", new, ids, np.eye(10, 4) + 1, "x")
        return publish(*args)

    monkeypatch.setattr(compaction, "publish", late)
    with Memory.open(memory._folder, auto_compact=False) as plain:
        plain.compact()
        assert plain.spaces["text"] == new
        assert len(plain.search("text", np.ones(4), 20)) == len(plain.search("image", np.ones(16), 20)) == 10
        assert plain.verify() == []


def test_many_threads_may_add_and_remove(memory: Memory, entries: Make) -> None:
    added: list[int] = []

    def work(seed: int) -> None:
        for entry in entries(10, seed=seed):
            added.extend(memory.add([entry]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == list(range(1, 61))
    assert len(memory.search("image", np.ones(16), 100)) == len(memory) == 60


def test_a_sweep_leaves_a_running_compaction_alone(
    memory: Memory, folder: Path, spaces: dict[str, Space], entries: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.add(entries(50))
    build = index.build

    def watched(*args: Any, **options: Any) -> Any:
        files = build(*args, **options)
        Memory.open(folder, spaces, auto_compact=False).close()
        assert all(file.exists() for file in files)
        return files

    monkeypatch.setattr(index, "build", watched)
    memory.compact()
    assert memory.stats().generation == 1


_FORKS = """
import os, sys, warnings
from pathlib import Path
from edge_ravlm.errors import UsageError
from edge_ravlm.runtime.memory import Memory, NewEntry, Space
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
space = Space("ab12" * 16, 2)
memory = Memory.open(sys.argv[1], {"image": space})
entry = NewEntry("one", vectors={"image": [1.0, 0.0]})
memory.add([entry])
with memory._live.reading():  # as another thread may at that moment
    child = os.fork()
if not child:
    for use in (memory.count, lambda: memory.add([entry]), lambda: memory.search("image", [1.0, 0.0], 1)):
        try:
            use()
        except UsageError as error:
            print(error)
    with Memory.open(sys.argv[1], {"image": space}) as anew:
        print(anew.add([entry]), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(memory.count(), memory.verify())
memory.close()
"""

_FORKED = (
    "expected one that this process has opened, got its parent's; "
    "open it in the new process, best one that multiprocessing's 'spawn' started"
)


def test_a_forked_process_has_to_open_the_memory_itself(run: Callable[..., Any], folder: Path) -> None:
    """SQLite's connections must not be carried over: what is read or written there may be wrong later."""
    done = run(_FORKS, folder)
    *refused, added, left = done.stdout.splitlines()
    assert refused == [f"memory '{folder}': {_FORKED}."] * 3, done.stderr
    assert (added, left) == ("[2]", "2 []")
