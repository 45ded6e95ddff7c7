"""From a Where to the ids that match it."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from edge_ravlm.runtime.memory.entries import Ids, Where, choices

CACHED_FILTERS = 32


def conditions(where: Where, above: int = 0) -> tuple[str, list[object]]:
    """An SQL condition over `entries e` for ids greater than `above`, and its parameters."""
    # The unary plus keeps SQLite from walking all entries by id where a tag or time index finds the few.
    clauses: list[str] = ["+e.id > ?"]
    values: list[object] = [above]
    for key, value in where.tags.items():
        if value is None:
            clauses.append("e.id NOT IN (SELECT entry_id FROM tags WHERE key = ? AND entry_id > ?)")
            values += [key, above]
        else:
            wanted = choices(value)
            marks = ", ".join("?" * len(wanted))
            clauses.append(f"e.id IN (SELECT entry_id FROM tags WHERE key = ? AND value IN ({marks}) AND entry_id > ?)")
            values += [key, *wanted, above]
    if where.after is not None:
        clauses.append("e.time >= ?")
        values.append(where.after)
    if where.before is not None:
        clauses.append("e.time < ?")
        values.append(where.before)
    for column, chosen in (("e.modality", where.modalities), ("e.id", where.ids)):
        if chosen is not None:
            clauses.append(f"{column} IN (SELECT value FROM json_each(?))")
            values.append(json_list(chosen))
    return " AND ".join(clauses), values


def json_list(items: frozenset[str] | frozenset[int] | list[int]) -> str:
    """For json_each, which takes any number of values in one parameter."""
    return json.dumps(list(items))


class FilterCache:
    """Resolved filters, kept up to date by asking only for ids that came since; its owner guards it with a
    lock.

    Ids only grow and entries don't change, so what matched keeps matching. Removed ids stay listed: searches
    drop them.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Where, tuple[int, Ids]] = OrderedDict()

    def ids(self, where: Where, newest: int, fetch: Callable[[Where, int], Ids]) -> Ids:
        """Ascending int64 ids that match.

        Args:
            where: the filter.
            newest: the highest id given out so far, removed or not.
            fetch: the matching ids above a given one, ascending.
        """
        if where.ids is not None:  # hardly asked twice, and would push out what is
            return fetch(where, 0)
        upto, ids = self._known.pop(where, (0, np.empty(0, np.int64)))
        if upto < newest:
            fresh = fetch(where, upto)
            ids = np.concatenate([ids, fresh]) if len(ids) else fresh
            upto = max(newest, int(fresh[-1]) if len(fresh) else 0)
        self._known[where] = (upto, ids)
        if len(self._known) > CACHED_FILTERS:
            self._known.popitem(last=False)
        return ids

    def clear(self) -> None:
        """Forget everything, and with it the ids of removed entries."""
        self._known.clear()
