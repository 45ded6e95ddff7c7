"""Memory: entries with vectors in a folder, durable when ``add`` returns, searchable at once, exact under filters.

The map: ``entries`` (what goes in and out) · ``memory`` (the public class) · ``database`` and ``store``
(SQLite, the truth) · ``words`` (which entries say a word) · ``generations``, ``index`` and ``compaction`` (the
disposable on-disk cache and how it is made) · ``live`` (what any process wrote, followed) · ``field`` and ``ranking``
(searching) · ``filters`` (which entries match) · ``verification`` (the full check) · ``stats`` (in numbers) ·
``faults`` (the disk's complaints in our words).
"""

from __future__ import annotations

from edge_ravlm.runtime.memory.entries import Entry, Hit, NewEntry, Space, Where
from edge_ravlm.runtime.memory.memory import Memory
from edge_ravlm.runtime.memory.stats import FieldStats, Stats

__all__ = ["Entry", "FieldStats", "Hit", "Memory", "NewEntry", "Space", "Stats", "Where"]
