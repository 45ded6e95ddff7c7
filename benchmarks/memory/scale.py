"""Our memory with the two fields of a bundle's, as large as wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_ravlm.runtime.memory import Memory, NewEntry, Space
from memory import ours
from memory.data import DIM, Vectors

SPACES = {**ours.SPACES, "text": Space("2" * 64, DIM)}
"""Both fields that a memory of a bundle has; `image` is the one that is searched."""

_BATCH = 5_000


def build(folder: Path, images: Vectors, texts: Vectors, advance: Callable[..., None]) -> None:
    """A memory of an entry per row, compacted; its ids are 1, 2, … in the order of the rows.

    Args:
        folder: new or empty.
        images: float32 [n, DIM].
        texts: float32 [n, DIM].
        advance: told ``completed`` and ``total`` steps; an entry counts once when added and once per field after.
    """
    count = len(images)
    total = count * (1 + len(SPACES))
    with Memory.open(folder, SPACES, auto_compact=False) as memory:
        for start in range(0, count, _BATCH):
            rows = range(start, min(start + _BATCH, count))
            memory.add([NewEntry(f"thing {i}", vectors={"image": images[i], "text": texts[i]}) for i in rows])
            advance(completed=rows.stop, total=total)
        memory.compact(lambda done, _: advance(completed=count + done, total=total))
