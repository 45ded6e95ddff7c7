"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$EDGE_RAVLM_CACHE``, else ``edge-ravlm`` in the user's cache folder; not necessarily there yet."""
    given = os.environ.get("EDGE_RAVLM_CACHE")
    if given:
        return Path(given)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in containers: what is kept there is made again each time
        base = "/nonexistent"
    return Path(base) / "edge-ravlm"
