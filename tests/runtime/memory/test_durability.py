"""Power cuts, as SIGKILL gives them: nothing acknowledged is lost, and the memory opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_ravlm.runtime.memory import Memory, NewEntry, Space, Where

_PREPARE = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from edge_ravlm.runtime.memory import Memory, NewEntry, Space, compaction, database, generations, index, store
index.SCAN_ROWS = 32
spaces = {"image": Space("ab12" * 16, 16), "text": Space("cd34" * 16, 8)}
folder = Path(sys.argv[1])
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def rows(n, seed):
    return np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)
def entries(n, seed):
    return [NewEntry("", tags={"seed": seed}, vectors={"image": row}) for row in rows(n, seed)]
memory = Memory.open(folder, spaces, auto_compact=False)
"""

_ADD_AND_DIE = """
for seed in range(5):
    print(*memory.add(entries(20, seed)), flush=True)
print("removed", memory.remove([1, 50]), flush=True)
die()
"""

_DIE_WHILE_ADDING = """
memory.add(entries(20, 0))
original = store.Store.put_vectors
store.Store.put_vectors = lambda self, *a: (original(self, *a), die())
memory.add(entries(20, 1))
"""

_DIE_WHILE_COMPACTING = """
memory.add(entries(60, 0))
memory.compact()
memory.add(entries(60, 1))
memory.remove([1, 61])
print("ready", flush=True)
owner, name, when = eval(sys.argv[2])
original = getattr(owner, name)
def step(*args, **options):
    result = original(*args, **options) if when == "after" else None
    die()
setattr(owner, name, step)
memory.compact()
"""

_STEPS = [
    ("(index._Growing, 'add', 'after')", 1),
    ("(index._Growing, 'save', 'after')", 1),
    ("(generations, 'seal', 'after')", 1),
    ("(generations, 'put_in_place', 'before')", 1),
    ("(generations, 'sync_folder', 'before')", 1),
    ("(generations, 'put_in_place', 'after')", 1),
    ("(store.Store, 'set_generation', 'after')", 1),
    ("(compaction, 'publish', 'after')", 2),
    ("(generations, 'sweep', 'before')", 2),
]


def _rows(n: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)


def test_what_add_acknowledged_survives_a_kill(folder: Path, spaces: dict[str, Space], run: Any) -> None:
    done = run(_PREPARE + _ADD_AND_DIE, folder)
    assert done.returncode == -9, done.stderr
    assert "removed 2" in done.stdout
    with Memory.open(folder, spaces) as memory:
        assert [entry.id for entry in memory.entries()] == [i for i in range(1, 101) if i not in (1, 50)]
        assert memory.search("image", _rows(20, 3)[4], 1)[0].id == 65
        assert memory.verify() == []


def test_a_kill_while_adding_leaves_all_or_nothing(folder: Path, spaces: dict[str, Space], run: Any) -> None:
    done = run(_PREPARE + _DIE_WHILE_ADDING, folder)
    assert done.returncode == -9, done.stderr
    with Memory.open(folder, spaces) as memory:
        assert len(memory) == 20
        assert memory.verify() == []


@pytest.mark.parametrize(("step", "generation"), _STEPS)
def test_a_kill_while_compacting_leaves_a_complete_memory(
    folder: Path, spaces: dict[str, Space], run: Any, nearest: Any, nearly: Any, step: str, generation: int
) -> None:
    done = run(_PREPARE + _DIE_WHILE_COMPACTING, folder, step)
    assert done.returncode == -9, done.stderr
    assert done.stdout == "ready\n"
    vectors = {i + 1 + 60 * seed: row for seed in (0, 1) for i, row in enumerate(_rows(60, seed))}
    del vectors[1], vectors[61]
    with Memory.open(folder, spaces, auto_compact=False) as memory:
        assert memory.stats().generation == generation
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {f"generation-{generation:06d}"}
        assert memory.verify() == []
        nearly(memory.search("image", vectors[77], 200), nearest(vectors, vectors[77], 200))
        assert memory.count(Where(tags={"seed": 1})) == 59
        memory.add([NewEntry("opposite", vectors={"image": -vectors[77]})])
        memory.compact()
        assert memory.search("image", -vectors[77], 1)[0].id == 121
        assert memory.stats().generation == generation + 1
        assert memory.verify() == []


def test_a_kill_while_creating_leaves_a_path_that_can_be_created(
    folder: Path, spaces: dict[str, Space], run: Any
) -> None:
    script = _PREPARE.replace(
        "memory = ", "database._write_schema = lambda c: (c.execute('CREATE TABLE t(x)'), die())\n"
    )
    assert run(script, folder).returncode == -9
    assert [path.name for path in folder.iterdir()] != []
    with Memory.open(folder, spaces) as memory:
        assert memory.add([NewEntry("", vectors={"image": np.ones(16)})]) == [1]
