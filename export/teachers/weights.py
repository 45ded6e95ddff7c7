"""Where teachers' weights come from, and one sentence where they cannot be read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import fetch, packages
from edge_ravlm.manifest import Source

_REGISTRIES = {"pypi": "PyPI", "debian": "Debian", "npm": "npm"}


def package_source(name: str) -> Source:
    """Origin and licence of one entry of ``packages.toml``."""
    package = packages()[name]
    origin = f"{_REGISTRIES[package.registry]} {package.package} {package.version}".rstrip()
    return Source(name=name, origin=origin, licence=package.licence)


def package_file(name: str, pattern: str) -> Path:
    """The first file of a package whose name matches, such as ``*.pth``; fetched if it is not in the cache.

    Raises:
        DataError: the package cannot be fetched, or has no such file.
    """
    folder = fetch(name)
    found = sorted(folder.rglob(pattern))
    if not found:
        raise DataError(
            f"package '{name}'",
            expected=f"a file {pattern}",
            got="none",
            do=f"delete '{folder}' and run the command again",
        )
    return found[0]


@contextmanager
def reading(what: str, expected: str, do: str) -> Iterator[None]:
    """Around code that reads foreign weights: whatever a damaged or foreign file makes it raise becomes a sentence.

    Raises:
        DataError: in place of that error, with its first line.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise DataError(what, expected=expected, got=first, do=do) from error
