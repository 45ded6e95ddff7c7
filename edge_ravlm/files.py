"""Writing files: whole or not at all, and one sentence where the disk refuses."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_ravlm.errors import StorageError


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears whole under its name, in place of an older one, or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # readable to whom the user's files are
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def storing(what: str, *, expected: str = "a place that can be written", do: str) -> Iterator[None]:
    """Around writing: what the disk refuses becomes a sentence; the arguments are those of ``EdgeRavlmError``.

    Raises:
        StorageError: the disk refused.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(what, expected=expected, got=error.strerror or str(error), do=do) from None
