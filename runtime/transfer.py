"""Memories in and out in bulk: a list or folder of pictures in, a list with pictures out."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import msgspec
import numpy as np

from edge_ravlm.errors import DataError, FrameError, UsageError
from edge_ravlm.files import storing
from edge_ravlm.frames import IMAGE_SUFFIXES, Frame, Region, read_image
from edge_ravlm.runtime.memory import Entry, Memory, NewEntry
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.questions import REGION_TAG

LIST_NAME = "memories.jsonl"
_BATCH = 64

Scalar = str | int | float | bool


class Row(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of an import list.

    Attributes:
        text: what the picture shows (empty where nothing is said of it, which needs a bundle with a meaning space), or
            a fact when there is no picture.
        image: path of the picture, relative to the list.
        answer, tags, modality, time: as in ``remember``; time in unix seconds.
    """

    text: str
    image: str | None = None
    answer: str | None = None
    tags: dict[str, Scalar] = {}
    modality: str | None = None
    time: float | None = None


@dataclass
class Imported:
    """What an import came to.

    Attributes:
        added: entries that are new in the memory.
        present: rows that the memory held before: the same picture, text, answer, tags and kind, and the same time
            where the row names one.
        skipped: a sentence for each row whose picture or text could not be used.
    """

    added: int = 0
    present: int = 0
    skipped: list[str] = field(default_factory=list)


def read_rows(source: Path) -> tuple[list[Row], Path]:
    """The rows of a ``.jsonl`` or ``.csv`` list, or of a folder, and the folder that their pictures are relative to.

    A folder is read through the ``memories.jsonl`` in it; without one, every picture becomes a row whose text is its
    file name ("garage_door-open.jpg" says "garage door open").

    Raises:
        DataError: naming the line that is wrong; nothing was imported then.
    """
    if source.is_dir():
        listed = source / LIST_NAME
        return (read_rows(listed)[0] if listed.is_file() else _rows_of_folder(source)), source
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows}
    if source.suffix.lower() not in readers or not source.is_file():
        raise DataError(
            f"import '{source}'",
            expected="a folder of pictures, a .jsonl or a .csv file",
            got="a file of another kind" if source.exists() else "nothing there",
            do="see `edge-ravlm memory import --help` for the columns",
        )
    rows = list(readers[source.suffix.lower()](source))
    if not rows:
        raise _bad(source, "at least one row", "none")
    return rows, source.parent


def import_rows(ravlm: Ravlm, rows: list[Row], base: Path, advance: Callable[..., None]) -> Imported:
    """Embed and add rows in batches, each durable on its own.

    What the memory holds already is counted and left as it is; what no encoder can read is skipped and named.
    """
    outcome = Imported()
    held = _held(ravlm.memory, {row.text for row in rows})
    batch: list[NewEntry] = []
    for row in rows:
        entry = _entry(ravlm, row, base, outcome)
        if entry is not None and _take(held, entry, row, base):
            outcome.present += 1
        elif entry is not None:
            batch.append(entry)
        if len(batch) == _BATCH:
            outcome.added += len(ravlm.memory.add(batch))
            batch.clear()
        advance()
    outcome.added += len(ravlm.memory.add(batch)) if batch else 0
    return outcome


def export_memory(memory: Memory, folder: Path, advance: Callable[..., None]) -> int:
    """Write ``memories.jsonl`` and a picture per entry that has one; ``import`` reads it back. Returns the entries.

    The folder appears whole or not at all.
    """
    if folder.exists():
        raise DataError(
            f"output '{folder}'",
            expected="a folder that is not there yet",
            got="one that is",
            do="choose another name",
        )
    with storing(f"output '{folder}'", do="free space there or choose another place"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            whole = Path(scratch) / "export"
            (whole / "images").mkdir(parents=True)
            count = _write_rows(memory, whole, advance)
            whole.replace(folder)
    return count


def reembed(ravlm: Ravlm, memory: Memory, advance: Callable[..., None]) -> list[int]:
    """Embed every entry again with the bundle in use, from its text and its kept picture.

    Args:
        ravlm: the bundle to embed with; its own memory is not touched.
        memory: opened without naming spaces, so that one of another bundle opens too.
        advance: called once per entry.

    Returns:
        Entries whose kept picture is missing; they lose their image vector and are found by text only.
    """
    spaces = ravlm.memory.spaces
    without: list[int] = []
    done: set[int] = set()
    before = -1
    while len(done) > before:  # once more for what was taught meanwhile
        before = len(done)
        ids: dict[str, list[int]] = {name: [] for name in spaces}
        vectors: dict[str, list[np.ndarray]] = {name: [] for name in spaces}
        for entry in memory.entries():
            if entry.id in done:
                continue
            thumbnail = None if entry.thumbnail is None else _decoded(entry.thumbnail)
            embedded = ravlm.entry(thumbnail, entry.text, region=_looked_at(thumbnail, entry.tags)).vectors
            for name, vector in embedded.items():
                ids[name].append(entry.id)
                vectors[name].append(np.asarray(vector))
            if thumbnail is None and entry.modality in ("frame", "image"):
                without.append(entry.id)
            done.add(entry.id)
            advance()
        for name, space in spaces.items():
            rows = np.stack(vectors[name]) if vectors[name] else np.empty((0, space.dim), np.float32)
            memory.reembed(name, space, ids[name], rows, ravlm.flavor)
    memory.compact()
    return without


def _looked_at(kept: Frame | None, tags: Mapping[str, Scalar]) -> Region | None:
    """All of a kept picture, where it is what was taught in a region: that is looked at as a region is."""
    if kept is None or REGION_TAG not in tags:
        return None
    height, width = kept.pixels.shape[:2]
    return Region.box(0, 0, width, height)


def _held(memory: Memory, texts: AbstractSet[str]) -> Counter[tuple[object, ...]]:
    """How often the memory holds what may be imported, with its time and without."""
    held: Counter[tuple[object, ...]] = Counter()
    for entry in memory.entries():
        if entry.text in texts:
            held.update(_said(entry, time, entry.thumbnail) for time in (entry.time, None))
    return held


def _take(held: Counter[tuple[object, ...]], entry: NewEntry, row: Row, base: Path) -> bool:
    """Whether the memory held this before the import, as often as the rows so far say it."""
    pictures = [entry.thumbnail]
    if row.image is not None and held:
        with suppress(OSError):
            pictures.append((base / row.image).read_bytes())  # an export's pictures are a memory's thumbnails
    for picture in pictures:
        said = _said(entry, row.time, picture)
        if held[said] > 0:
            held[said] -= 1
            return True
    return False


def _said(entry: Entry | NewEntry, time: float | None, picture: bytes | None) -> tuple[object, ...]:
    return entry.text, entry.answer, frozenset(entry.tags.items()), entry.modality, time, hash(picture)


def _entry(ravlm: Ravlm, row: Row, base: Path, outcome: Imported) -> NewEntry | None:
    modality = row.modality or ("text" if row.image is None else "image")
    try:
        frame = None if row.image is None else read_image(base / row.image)
        region = _looked_at(frame, row.tags)
        return ravlm.entry(
            frame, row.text, answer=row.answer, tags=row.tags, region=region, modality=modality, at=row.time
        )
    except FrameError as error:
        outcome.skipped.append(str(error))
    except UsageError as error:  # a text that the tokenizer finds nothing in
        outcome.skipped.append(f"'{row.image or row.text[:40]}': {error}")
    return None


def _rows_of_folder(folder: Path) -> list[Row]:
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not pictures:
        raise _bad(folder, f"pictures or a {LIST_NAME}", "neither")
    return [
        Row(text=path.stem.replace("_", " ").replace("-", " "), image=str(path.relative_to(folder)))
        for path in pictures
    ]


def _jsonl_rows(source: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(source).split("\n"), 1):  # JSON strings may hold any other line break
        if line.strip():
            try:
                yield _checked(msgspec.json.decode(line, type=Row))
            except (msgspec.DecodeError, ValueError, UsageError) as error:
                raise _bad(source, "an object with text and optionally image, answer, tags, modality, time",
                           f"line {number}: {str(error).rstrip('.')}") from None  # fmt: skip


def _csv_rows(source: Path) -> Iterator[Row]:
    """Columns as in Row; a column ``tag:NAME`` sets that tag."""
    reader = csv.DictReader(io.StringIO(_text(source), newline=""), restkey="more")
    try:
        for record in reader:
            values = {name: value for name, value in record.items() if value}
            tags = {name[4:]: values.pop(name) for name in list(values) if name.startswith("tag:")}
            # A column called tags stays as it is: a text where Row has a mapping, so it is refused.
            yield _checked(msgspec.convert({"tags": tags, **values}, Row, strict=False))
    except (csv.Error, msgspec.ValidationError, ValueError, UsageError) as error:
        raise _bad(source, "columns text, image, answer, modality, time, tag:NAME",
                   f"line {reader.line_num}: {str(error).rstrip('.')}") from None  # fmt: skip


def _checked(row: Row) -> Row:
    if not row.text.strip() and (row.text or row.image is None):  # a picture may be there for what it shows
        raise ValueError("an empty text")
    given = {name: value for name in ("modality", "time") if (value := getattr(row, name)) is not None}
    NewEntry(row.text, row.answer, row.tags, **given)  # refuses what the memory would
    return row


def _text(source: Path) -> str:
    try:
        return source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(source, "UTF-8 text", str(error)) from None
    except OSError as error:
        raise _bad(source, "a readable file", error.strerror or str(error)) from None


def _bad(source: Path, expected: str, got: str) -> DataError:
    return DataError(f"import '{source}'", expected=expected, got=got, do="correct it and import again")


def _write_rows(memory: Memory, folder: Path, advance: Callable[..., None]) -> int:
    count = 0
    with (folder / LIST_NAME).open("wb") as out:
        for entry in memory.entries():
            image = None
            if entry.thumbnail is not None:
                image = f"images/{entry.id}.jpg"
                (folder / image).write_bytes(entry.thumbnail)
            row = Row(
                text=entry.text,
                image=image,
                answer=entry.answer,
                tags=dict(entry.tags),
                modality=entry.modality,
                time=entry.time,
            )
            out.write(msgspec.json.encode(row) + b"\n")
            count += 1
            advance()
    return count


def _decoded(jpeg: bytes) -> Frame | None:
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    return None if pixels is None else Frame(np.asarray(pixels, np.uint8))
