"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$EDGE_RAVLM_CACHE``, else ``edge-ravlm`` in the user's cache folder; not necessarily there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EDGE_RAVLM_CACHE") or Path(base) / "edge-ravlm")
