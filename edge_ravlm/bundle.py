"""The bundle: one folder, or one ``.zip``, that export writes and the runtime reads.

Bytes leave this module only after their SHA-256 was found to be the manifest's; readers get bytes, never paths, so a
file cannot change between the check and its use.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Protocol

import msgspec

from edge_ravlm.errors import BundleAltered, BundleError
from edge_ravlm.files import storing
from edge_ravlm.manifest import MANIFEST_NAME, FileRecord, Manifest, decode_manifest, encode_manifest

STARTER = "starter"
"""The name that means the bundle inside the package."""

_MAX_MANIFEST_BYTES = 4_000_000
_COPY_AGAIN = "copy or export the bundle again"

_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)
"""What the disk and the zip reader raise: RuntimeError for encrypted entries, ValueError for garbled names."""


class Bundle:
    """A bundle whose layout was checked at ``open``; contents are checked as they are read."""

    def __init__(self, where: str, files: _Files, manifest: Manifest, manifest_sha256: str) -> None:
        self.where = where
        self.manifest = manifest
        self.sha256 = manifest_sha256
        """Names this very bundle: the manifest lists every file's hash, so its own hash covers all of them."""
        self._files = files
        self._hashes = {MANIFEST_NAME: manifest_sha256, **{record.path: record.sha256 for record in manifest.files}}

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a folder, a ``.zip`` or ``"starter"``; no model file is read yet.

        Raises:
            BundleError: there is no bundle there, or its manifest is not valid.
            BundleAltered: a file is missing, extra, or of another size than the manifest says.
        """
        where = f"bundle '{path}'"
        files = _open_files(starter_path() if str(path) == STARTER else Path(path), where)
        sizes = files.sizes()
        if MANIFEST_NAME not in sizes or sizes[MANIFEST_NAME] > _MAX_MANIFEST_BYTES:
            raise BundleError(
                where,
                expected=f"a {MANIFEST_NAME} of at most 4 MB",
                got="none" if MANIFEST_NAME not in sizes else f"{sizes[MANIFEST_NAME]} bytes",
                do="give the folder or .zip that `edge-ravlm export` wrote",
            )
        data = files.read(MANIFEST_NAME)
        manifest = decode_manifest(data, where)
        _check_layout(where, manifest, sizes)
        return cls(where, files, manifest, hashlib.sha256(data).hexdigest())

    def read(self, path: str) -> bytes:
        """The bytes of a listed file, or of the manifest itself, hash checked.

        Raises:
            BundleAltered: the bytes are not the ones the manifest lists.
        """
        expected = self._hashes[path]
        data = self._files.read(path)
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise BundleAltered(
                self.where,
                expected=f"{path} with SHA-256 {expected[:12]}…",
                got=f"{found[:12]}…",
                do=_COPY_AGAIN,
            )
        return data

    def verify(self) -> int:
        """Read and check every file; returns the bytes checked."""
        return sum(len(self.read(path)) for path in self._hashes)


def write_bundle(folder: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """Write a bundle folder in one step: it appears whole under its name, or not at all.

    Args:
        folder: must not exist yet, or be empty.
        manifest: its ``files`` are filled in here.
        contents: bytes by path.
    """
    where = f"output '{folder}'"
    records = tuple(
        FileRecord(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in sorted(contents.items())
    )
    manifest = msgspec.structs.replace(manifest, files=records)
    _check_layout(where, manifest, {path: len(data) for path, data in contents.items()})
    with storing(where, do="free space there or choose another folder"):
        check_new(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            whole = Path(temporary) / "bundle"
            _write_files(whole, {**contents, MANIFEST_NAME: encode_manifest(manifest)})
            whole.replace(folder)
    return Bundle.open(folder)


def check_new(folder: Path) -> None:
    """Raise BundleError unless a bundle may be written there: nothing is, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(
            f"output '{folder}'",
            expected="a folder that is new or empty",
            got="one with files in it" if folder.is_dir() else "a file",
            do="choose another folder or empty this one",
        )


def pack_bundle(bundle: Bundle, archive: Path) -> None:
    """Write the bundle as one ``.zip``, byte-identical for equal bundles, appearing whole or not at all."""
    temporary = archive.with_name(f".{archive.name}.{secrets.token_hex(4)}")
    try:
        with storing(f"archive '{archive}'", do="free space there or choose another place"):
            with temporary.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
                for path in (MANIFEST_NAME, *(record.path for record in bundle.manifest.files)):
                    _add(out, path, bundle.read(path))
            temporary.replace(archive)
    finally:
        with suppress(OSError):
            temporary.unlink()


def starter_path() -> Path:
    """The folder of the bundle that ships inside the package."""
    return Path(str(package_files("edge_ravlm"))) / STARTER


class _Files(Protocol):
    """Where a bundle's bytes lie."""

    def sizes(self) -> dict[str, int]:
        """Bytes by relative path, for every file there is; -1 for a link, a pipe or whatever is no plain file."""

    def read(self, path: str) -> bytes:
        """One file's bytes."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def sizes(self) -> dict[str, int]:
        found = ((path.relative_to(self._root).as_posix(), path.lstat()) for path in self._root.rglob("*"))
        return {
            path: status.st_size if stat.S_ISREG(status.st_mode) else -1
            for path, status in found
            if not stat.S_ISDIR(status.st_mode)
        }

    def read(self, path: str) -> bytes:
        # A listed name that is a link would read a file outside the bundle; one that is a pipe would block.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self._root / path, flags), "rb") as file:  # noqa: PTH123
            return file.read()


class _Archive:
    def __init__(self, path: Path) -> None:
        self._path = path

    def sizes(self) -> dict[str, int]:
        with zipfile.ZipFile(self._path) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
        sizes = {info.filename: info.file_size for info in found}
        if len(sizes) < len(found):  # readers disagree on which of the two counts
            raise zipfile.BadZipFile("one with the same name twice")
        return sizes

    def read(self, path: str) -> bytes:
        with zipfile.ZipFile(self._path) as archive:
            info = archive.getinfo(path)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile("another compression than deflate")
            with archive.open(info) as file:
                return file.read(info.file_size)  # a bare read() would unpack a bomb whole before it cuts


class _Checked:
    """Turns what the disk or the zip reader says into one sentence."""

    def __init__(self, where: str, files: _Folder | _Archive) -> None:
        self._where, self._files = where, files

    def sizes(self) -> dict[str, int]:
        try:
            return self._files.sizes()
        except _UNREADABLE as error:
            raise self._unreadable(error) from None

    def read(self, path: str) -> bytes:
        try:
            return self._files.read(path)
        except _UNREADABLE as error:
            raise self._unreadable(error, path) from None

    def _unreadable(self, error: Exception, path: str = "") -> BundleAltered:
        expected = f"a readable {path}" if path else "a readable folder or .zip"
        got = (error.strerror if isinstance(error, OSError) else None) or str(error) or "its end too early"
        return BundleAltered(self._where, expected=expected, got=got, do=_COPY_AGAIN)


def _open_files(path: Path, where: str) -> _Files:
    try:
        if path.is_dir():
            return _Checked(where, _Folder(path))
        if path.is_file() and zipfile.is_zipfile(path):
            return _Checked(where, _Archive(path))
        got = "a file of another kind" if path.exists() else "nothing there"
    except OSError as error:  # no permission, or a name too long for any file
        got = error.strerror or str(error)
    raise BundleError(
        where,
        expected="a bundle folder or .zip",
        got=got,
        do="give the folder or .zip that `edge-ravlm export` wrote, or 'starter'",
    )


def _check_layout(where: str, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Names and sizes, before anything is read: nothing outside, nothing missing, nothing extra."""
    listed = {record.path: record.bytes for record in manifest.files}
    if len(listed) < len(manifest.files):
        raise BundleAltered(where, expected="each file listed once", got="one listed twice", do=_COPY_AGAIN)
    for path in listed:
        plain = PurePosixPath(path)
        outside = plain.is_absolute() or ".." in plain.parts or "\\" in path
        if outside or str(plain) != path or path in (".", MANIFEST_NAME):
            raise BundleAltered(where, expected="paths inside the bundle", got=f"'{path}'", do=_COPY_AGAIN)
    for path in sorted(manifest.required_files() - listed.keys()):
        raise BundleAltered(where, expected=f"{path} listed", got="no such entry", do=_COPY_AGAIN)
    for path in sorted(listed.keys() | (sizes.keys() - {MANIFEST_NAME})):
        if listed.get(path) != sizes.get(path):
            expected = f"{path} of {listed[path]} bytes" if path in listed else f"no file {path}"
            found = sizes.get(path)
            got = "no such file" if found is None else "a link or special file" if found < 0 else f"{found} bytes"
            raise BundleAltered(where, expected=expected, got=got, do=_COPY_AGAIN)


def _write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    for path, data in contents.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _add(archive: zipfile.ZipFile, path: str, data: bytes) -> None:
    info = zipfile.ZipInfo(path)  # its default date, 1980-01-01, keeps the archive reproducible
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)
