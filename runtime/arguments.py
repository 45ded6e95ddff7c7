"""What callers hand in by mistake is refused in one sentence, before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_ravlm.errors import UsageError
from edge_ravlm.frames import Region
from edge_ravlm.runtime.memory import Where


def check_region(region: Any) -> Region | None:
    """The region; raises UsageError when it is something else, such as bare corners."""
    if region is None or isinstance(region, Region):
        return region
    raise UsageError(
        "region",
        expected="a Region or None",
        got=repr(region),
        do="make one with Region.box(x0, y0, x1, y1) or Region.parse('gate=40,60,200,180')",
    )


def check_where(where: Any) -> Where | None:
    """The filter; raises UsageError when it is something else, such as bare tags."""
    if where is None or isinstance(where, Where):
        return where
    raise UsageError(
        "where", expected="a Where or None", got=repr(where), do="give for instance Where(tags={'a': 'b'})"
    )


def check_tags(tags: Any) -> Mapping[str, Any]:
    """The tags, none for None; raises UsageError when they are no mapping. ``NewEntry`` checks what is in it."""
    if tags is None or isinstance(tags, Mapping):
        return tags or {}
    raise UsageError("tags", expected="a mapping of names to values", got=repr(tags), do="give for instance {'a': 'b'}")
