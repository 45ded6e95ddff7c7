"""Generation folders: sealing, opening and sweeping the files that a memory can always make again.

A file is served only if its SHA-256 is the one recorded in memory.db. Because hashing takes longer than
opening, a file is not hashed again while its size, times of change, inode and device are those of its last
full check. The kernel sets ctime on every write, rename and chmod, and no call can set it back, so this
notices whatever was done to a file through the file system, a copy of the folder included. It does not notice
what bypasses the file system: a medium that loses bits, a write to the raw device, a clock set back.
``Memory.verify`` hashes everything and does.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge_ravlm.runtime.memory.database import sync_folder
from edge_ravlm.runtime.memory.entries import Space
from edge_ravlm.runtime.memory.index import Base
from edge_ravlm.runtime.memory.store import SealedFile

_SETTLED_NS = 20_000_000
"""A file changed more recently gets no stamp: in one kernel tick (<= 10 ms) ctime hides a second write."""

_BUILDING, _GENERATION = "building-", "generation-"


class GenerationDamaged(Exception):
    """A generation file that is missing or not the one that was sealed; the message names it."""


def folder_of(memory: Path, number: int) -> Path:
    """The folder of a generation."""
    return memory / f"{_GENERATION}{number:06d}"


@contextmanager
def building(memory: Path) -> Iterator[Path]:
    """A fresh folder to build a generation in; gone afterwards unless it was put in place."""
    folder = memory / f"{_BUILDING}{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(files: Sequence[Path]) -> list[SealedFile]:
    """Force files to the disk and take their hashes and stamps."""
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle)
    if files:
        time.sleep(_SETTLED_NS / 1e9)  # a stamp taken sooner could also fit a later write
    return [_sealed(file) for file in files]


def put_in_place(built: Path, memory: Path, number: int) -> None:
    """Give a complete folder its final name, durably; it counts only once memory.db says so."""
    target = folder_of(memory, number)
    shutil.rmtree(target, ignore_errors=True)  # left by a crash between this rename and the switch
    sync_folder(built)
    built.rename(target)
    sync_folder(memory)


def sweep(memory: Path, keep: int) -> None:
    """Delete every generation but one, and every half-built one; the caller holds the folder lock."""
    for path in memory.iterdir():
        stale = path.name.startswith(_GENERATION) and path != folder_of(memory, keep)
        if stale or path.name.startswith(_BUILDING):
            shutil.rmtree(path, ignore_errors=True)


def open_bases(
    memory: Path, number: int, files: Sequence[SealedFile], spaces: Mapping[str, Space]
) -> tuple[dict[str, Base], dict[str, str]]:
    """Map a generation's files, hashing those whose stamp is not current.

    Returns:
        the base of each field that has rows; new stamps by file name.

    Raises:
        GenerationDamaged: a file is missing or not the one that was sealed.
    """
    folder = folder_of(memory, number)
    contents: dict[str, memoryview] = {}
    stamps: dict[str, str] = {}
    for file in files:
        contents[file.name], stamp = _open_sealed(folder / file.name, file)
        if stamp != file.stamp:
            stamps[file.name] = stamp
    return {name: _base(contents, name, spaces[name]) for name in spaces if f"{name}.ids" in contents}, stamps


def damage(folder: Path, files: Sequence[SealedFile]) -> dict[str, str]:
    """Hash every file in full, whatever the stamps say; what is wrong, by the name of the file."""
    faults = {file.name: _fault(folder / file.name, file) for file in files}
    return {name: fault for name, fault in faults.items() if fault}


def _fault(path: Path, file: SealedFile) -> str:
    try:
        _open_sealed(path, SealedFile(file.name, file.size, file.sha256, ""))
    except GenerationDamaged as error:
        return str(error)
    return ""


def _base(contents: Mapping[str, memoryview], name: str, space: Space) -> Base:
    try:
        return Base.from_files(
            contents[f"{name}.ids"],
            contents[f"{name}.f16"],
            [contents[file] for file in sorted(contents) if file.startswith(f"{name}.") and file.endswith(".usearch")],
            contents.get(f"{name}.expansion"),
            space.dim,
        )
    except (KeyError, ValueError) as error:
        raise GenerationDamaged(f"{name}: {error}") from None


def _sealed(path: Path) -> SealedFile:
    with path.open("rb") as handle:
        stamp, content = _stamp(handle.fileno()), _mapped(handle.fileno())
        return SealedFile(path.name, len(content), _sha256(content), stamp)


def _open_sealed(path: Path, file: SealedFile) -> tuple[memoryview, str]:
    try:
        with path.open("rb") as handle:
            # Everything below concerns this handle, so swapping the file in between changes nothing.
            looks, content = _looks(handle.fileno()), _mapped(handle.fileno())
            stamp = looks if looks == file.stamp else _stamp(handle.fileno())
    except OSError as error:
        raise GenerationDamaged(f"{path.name}: {error.strerror or error}") from None
    if len(content) != file.size:
        raise GenerationDamaged(f"{path.name} has {len(content)} bytes instead of {file.size}")
    if looks != file.stamp and _sha256(content) != file.sha256:
        raise GenerationDamaged(f"{path.name} is not the file that was written (SHA-256 differs)")
    return content, stamp


def _stamp(handle: int) -> str:
    """How a file looks from outside; "" while too fresh for a later write to be sure to change that."""
    # The absolute age: a device without a clock battery may have started in 1970.
    age = abs(time.time_ns() - os.fstat(handle).st_ctime_ns)
    return _looks(handle) if age >= _SETTLED_NS else ""


def _looks(handle: int) -> str:
    status = os.fstat(handle)
    seen = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    return ":".join(map(str, seen))


def _mapped(handle: int) -> memoryview:
    if not os.fstat(handle).st_size:
        return memoryview(b"")  # nothing to map
    return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))


def _sha256(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
