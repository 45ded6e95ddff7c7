"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$EDGE_RAVLM_CACHE``, else ``edge-ravlm`` in the user's cache folder; not necessarily there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EDGE_RAVLM_CACHE") or Path(base) / "edge-ravlm")


def write_whole(file: Path, data: bytes) -> None:
    """Put a file into the cache, whole or not at all; raises OSError when the disk refuses."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(file)
