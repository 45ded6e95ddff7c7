"""Every error a user can meet, as one tree.

::

    EdgeRavlmError            exit code 1
    ├── UsageError            the call itself is wrong (exit code 2)
    ├── MissingExtra          an optional dependency is not installed
    ├── FrameError            an image or frame that cannot be used
    ├── BundleError           a bundle that is missing, foreign or malformed
    │   └── BundleAltered     a bundle whose files are not the ones its manifest lists
    ├── MemoryFault           a memory that is missing, foreign or malformed
    │   ├── MemoryDamaged     a memory whose bytes are not the ones it wrote
    │   └── SpaceMismatch     a memory made with another encoder
    ├── StorageError          the disk refused: read-only, full, no permission
    ├── EngineError           a TensorRT engine that cannot be built or run
    ├── CameraError           a source that cannot be opened or was lost
    └── DataError             input data (label files, import lists, packages) that cannot be used

Every message is one sentence: what, what was expected, what was got, what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class EdgeRavlmError(Exception):
    """Base of the tree.

    Args:
        what: the thing at fault, as the user named it ("bundle 'x.zip'").
        expected: what would have been right.
        got: what was found instead.
        do: the next step, as an imperative without a full stop.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, expected: str, got: str, do: str) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}; {do}.")
        self.what, self.expected, self.got, self.do = what, expected, got, do

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle through positional args only; ours are keywords (worker processes send them home).
        return _rebuild, (type(self), self.what, self.expected, self.got, self.do)


def _rebuild(kind: type[EdgeRavlmError], what: str, expected: str, got: str, do: str) -> EdgeRavlmError:
    return kind(what, expected=expected, got=got, do=do)


class UsageError(EdgeRavlmError):
    """The call is wrong whatever the data: an unknown option, a negative budget, an empty question."""

    exit_code = 2


class MissingExtra(EdgeRavlmError):
    """A part that is not installed; the message names the extra that brings it."""


class FrameError(EdgeRavlmError):
    """An image or frame that cannot be used."""


class BundleError(EdgeRavlmError):
    """A bundle that is missing, foreign or malformed."""


class BundleAltered(BundleError):
    """A bundle whose files are not the ones its manifest lists."""


class MemoryFault(EdgeRavlmError):
    """A memory that is missing, foreign or malformed."""


class MemoryDamaged(MemoryFault):
    """A memory whose bytes are not the ones it wrote."""


class SpaceMismatch(MemoryFault):
    """A memory made with another encoder than the bundle in use."""


class StorageError(EdgeRavlmError):
    """The disk refused: read-only, full, or no permission."""


class EngineError(EdgeRavlmError):
    """A TensorRT engine that cannot be built or run: an operator, the memory or the GPU is not what it takes."""


class CameraError(EdgeRavlmError):
    """A camera source that cannot be opened, or that was lost."""


class DataError(EdgeRavlmError):
    """Input data that cannot be used: a label file, an import list, a package."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of optional packages: one that is missing becomes a sentence with what to install.

    Raises:
        MissingExtra: a package outside of edge_ravlm is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "edge_ravlm":
            raise
        raise MissingExtra(
            f"package {error.name}",
            expected="it to be installed",
            got="no such module",
            do=installs(extra),
        ) from None


def installs(extra: str) -> str:
    """The ``do`` of an error for want of an extra: the package is on no index, it comes from a checkout."""
    return f'run pip install ".[{extra}]" in the checkout of EdgeRAVLM'
