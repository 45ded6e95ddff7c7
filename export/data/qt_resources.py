"""Qt's resource archives (``.rcc``): the files in them, without Qt."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edge_ravlm.errors import DataError

_HEADER = struct.Struct(">4s4I")
_COMPRESSED, _FOLDER, _ZSTD = 1, 2, 4


def read_resources(path: Path) -> list[tuple[PurePosixPath, bytes]]:
    """Paths and contents in the archive's order.

    The layout is that of Qt's ``rcc.cpp``: a header with the offsets of a tree, of data and of names, all big-endian.
    A node is name (4 bytes), flags (2), then either children (4) and the first child (4), or territory (2), language
    (2) and data (4); from version 2 on a time (8) follows. A file is its length (4) and that many bytes, where
    compressed zlib's after the plain length (4). A name is its length in UTF-16 units (2), a hash (4) and the units.

    Raises:
        DataError: no such archive, a damaged one, or one that zstd compressed.
    """
    try:
        return list(_Archive(path.read_bytes()).walk(0, PurePosixPath()))
    except (OSError, ValueError, struct.error, zlib.error, RecursionError) as error:
        raise DataError(
            f"archive '{path}'", expected="Qt resources", got=str(error), do="fetch its package again"
        ) from None


class _Archive:
    def __init__(self, content: bytes) -> None:
        magic, version, self._tree, self._data, self._names = _HEADER.unpack_from(content)
        if magic != b"qres" or version not in (1, 2, 3):
            raise ValueError(f"magic {magic!r}, version {version}")
        self._content, self._node = content, 14 if version == 1 else 22

    def walk(self, index: int, where: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
        """The files at and below a node."""
        place = self._tree + index * self._node
        name, flags = self._read(">IH", place)
        here = where / self._name(name) if index else where
        if flags & _FOLDER:
            count, first = self._read(">2I", place + 6)
            for child in range(first, first + count):
                if child <= index:
                    raise ValueError("a folder within itself")
                yield from self.walk(child, here)
        elif flags & _ZSTD:
            raise ValueError("zstd, which this does not read")
        else:
            start = self._data + self._read(">I", place + 10)[0]
            raw = self._content[start + 4 : start + 4 + self._read(">I", start)[0]]
            yield here, zlib.decompress(raw[4:]) if flags & _COMPRESSED else raw

    def _name(self, offset: int) -> str:
        start = self._names + offset
        return self._content[start + 6 : start + 6 + 2 * self._read(">H", start)[0]].decode("utf-16-be")

    def _read(self, layout: str, place: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self._content, place)
