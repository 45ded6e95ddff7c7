"""TensorRT engines as files: what one may run on, how one is written, and how the right one is found again.

An engine is a disposable cache. It runs only where its whole key matches and its bytes are the ones that were written;
whatever else lies there is passed over with a reason for the log, never loaded.

A folder of engines holds two files for each: ``NAME.HASH.engine``, the engine, and ``NAME.json``, the record that
makes it count. The record is written last and replaced in one step, so an interrupted build leaves nothing, or the
engine that was there before.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edge_ravlm.bundle import Bundle
from edge_ravlm.cache import cache_folder
from edge_ravlm.errors import BundleAltered
from edge_ravlm.files import storing, write_file
from edge_ravlm.manifest import Engine, Sha256

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""The libraries that engines are made by and for."""

_MAX_RECORD_BYTES = 1_000_000
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Attributes of a device in CUDA's driver API."""


@dataclass(frozen=True)
class Key:
    """What an engine has to have been built for.

    Attributes:
        flavor: the library, ``tensorrt`` or ``tensorrt_rtx``.
        library_version: of that library, exactly.
        compute_capability: of the GPU at hand, such as "8.9".
        platform: as ``host_platform`` gives it.
        model_sha256: of the ONNX file.
    """

    flavor: str
    library_version: str
    compute_capability: str
    platform: str
    model_sha256: str

    def mismatch(self, engine: Engine) -> str:
        """The first part in which an engine differs, for people; "" where it matches."""
        for field in fields(self):
            wanted = getattr(self, field.name)
            several = field.name == "compute_capability"
            built = engine.compute_capabilities if several else (getattr(engine, field.name),)
            if wanted not in built:
                return f"made for {field.name.replace('_', ' ')} {', '.join(built)}, not {wanted}"
        return ""


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        reason: which engine was taken, or why none was; for the log.
        engine: its entry, or None.
        plan: its bytes, hash checked; empty where there is none.
    """

    reason: str
    engine: Engine | None = None
    plan: bytes = b""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``NAME.json`` holds."""

    engine: Engine
    bytes: int
    sha256: Sha256


def host_platform() -> str:
    """Operating system and processor, such as "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine()}"


def compute_capability() -> str | None:
    """Of the first GPU, such as "8.9"; None where there is no GPU or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, found = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), 0):
        return None
    for value, attribute in zip(found, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
            return None
    return f"{found[0].value}.{found[1].value}"


def error_log(library: Any) -> Any:
    """A log for either library that keeps the ``errors``; what it has to say otherwise is about its own work."""

    class Log(library.ILogger):  # type: ignore[misc]  # known at run time only: either library's
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()


def engine_cache() -> Path:
    """The folder of engines that belong to no bundle: any bundle with the same model finds its engine there."""
    return cache_folder() / "engines"


def engine_name(
    model: str, model_sha256: str, flavor: str, version: str, capabilities: Iterable[str], platform_: str
) -> str:
    """A file name that says the whole key, without an ending.

    Args:
        model: path of the ONNX file.
        model_sha256: of it.
        flavor: the library.
        version: of the library.
        capabilities: compute capabilities, such as "8.9".
        platform_: as ``host_platform`` gives it.
    """
    chips = "-".join(capability.replace(".", "") for capability in capabilities)
    return f"{PurePosixPath(model).stem}.{model_sha256[:12]}.{flavor}-{version}.sm{chips}.{platform_}"


def store(folder: Path, engine: Engine, plan: bytes) -> Engine:
    """Write an engine into a folder, in place of an older one with the same key.

    Returns:
        The engine with its file name in that folder.

    Raises:
        StorageError: the disk refused; nothing half-written counts, and an earlier engine stays.
    """
    name, sha256 = PurePosixPath(engine.file).stem, hashlib.sha256(plan).hexdigest()
    engine = msgspec.structs.replace(engine, file=f"{name}.{sha256[:12]}.engine")
    record = msgspec.json.format(msgspec.json.encode(Record(engine, len(plan), sha256)), indent=2) + b"\n"
    with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / engine.file, plan)
        write_file(folder / f"{name}.json", record)  # from here on the new one counts
        for older in folder.glob(f"{name}.*.engine"):
            if older.name != engine.file:
                older.unlink()
    return engine


def check_writable(folder: Path) -> None:
    """Make the folder if need be; raises StorageError if it takes no files."""
    with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def _storing(folder: Path) -> AbstractContextManager[None]:
    return storing(f"engine folder '{folder}'", do="free space there or choose another folder with -o")


def find(key: Key, bundle: Bundle | None, folders: Iterable[Path] = ()) -> Found:
    """The engine that matches exactly, from the bundle or else from one of the folders, its bytes checked."""
    passed: list[str] = []
    for engine, read in _candidates(bundle, folders, passed):
        difference = key.mismatch(engine)
        if difference:
            passed.append(f"{engine.file}: {difference}")
            continue
        try:
            return Found(f"engine {engine.file}", engine, read())
        except (BundleAltered, OSError, ValueError) as error:
            passed.append(f"{engine.file}: {error}")
    return Found(f"no engine fits ({'; '.join(passed) or 'there is none'})")


def _candidates(
    bundle: Bundle | None, folders: Iterable[Path], passed: list[str]
) -> Iterator[tuple[Engine, Callable[[], bytes]]]:
    """Engines, and what reads and checks each; what is no engine goes to ``passed``."""
    if bundle is not None:
        for engine in bundle.manifest.engines:
            yield engine, partial(bundle.read, engine.file)
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            record = _read_record(path, passed)
            if record is not None:
                yield record.engine, partial(_read_plan, folder / record.engine.file, record)


def _read_record(path: Path, passed: list[str]) -> Record | None:
    """A folder's entry, unless it is not whole or names a file that is not its own."""
    try:
        with path.open("rb") as file:
            record = msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        passed.append(f"{path.name}: {error}")
        return None
    if record.engine.file != f"{path.stem}.{record.sha256[:12]}.engine":
        passed.append(f"{path.name}: it names a file that is not its own")
        return None
    return record


def _read_plan(path: Path, record: Record) -> bytes:
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise ValueError(f"its {len(plan)} bytes are not the {record.bytes} that were written")
    return plan
