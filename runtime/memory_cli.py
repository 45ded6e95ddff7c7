"""``edge-ravlm memory …`` and ``edge-ravlm search``: what a memory holds, from the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import UsageError

if TYPE_CHECKING:
    from edge_ravlm.runtime.memory import Memory, Where
    from edge_ravlm.runtime.pipeline import Ravlm

app = cyclopts.App(name="memory", help="Teach, look into, check and move a memory.")

Tags = Annotated[list[str] | None, Parameter(name="--tag")]
Count = Annotated[int, Parameter(validator=Number(gte=0))]


@app.command
def add(
    memory: Path,
    /,
    *,
    text: str,
    image: Path | None = None,
    answer: str | None = None,
    tag: Tags = None,
    region: str | None = None,
    bundle: str = "starter",
    json: bool = False,
) -> None:
    """Remember one picture, or one fact without a picture.

    Args:
        memory: the memory's folder; made if it is not there.
        text: what the picture shows, or the fact, in a sentence.
        image: the picture; none for a fact.
        answer: the short answer to give, if not the sentence itself.
        tag: NAME=VALUE, to filter by; may be given several times, the value is kept as a text.
        region: the part of the picture that shows it, x0,y0,x1,y1 in pixels; with NAME= before it, the region gets a
            name to ask by.
        bundle: whose encoders embed it: a folder, a .zip, or 'starter'.
        json: print one JSON object.
    """
    from edge_ravlm.frames import Region, read_image
    from edge_ravlm.runtime.opening import load

    if region is not None and image is None:
        raise UsageError(
            "--region", expected="a picture that it is part of", got="none", do="give --image, or leave --region out"
        )
    picture = None if image is None else read_image(image)
    where = None if region is None else Region.parse(region)
    tags = parse_tags(tag)
    with load(bundle, memory) as ravlm:
        entry = ravlm.entry(picture, text, answer=answer, tags=tags, region=where)
        (id_,) = ravlm.memory.add([entry])
        _result({"id": id_, "entries": len(ravlm.memory)}, f"entry {id_}", json)


@app.command(name="import")
def import_(memory: Path, source: Path, /, *, bundle: str = "starter", json: bool = False) -> int:
    """Remember a folder of pictures, or the rows of a list, except for what the memory holds already.

    Args:
        memory: the memory's folder; made if it is not there.
        source: a folder of pictures, whose file names say what they show unless it holds a memories.jsonl; a .jsonl
            file (objects with text, image, answer, tags, modality, time); or a .csv file (the same columns, tags as
            tag:NAME).
        bundle: whose encoders embed them: a folder, a .zip, or 'starter'.
        json: print one JSON object.
    """
    from edge_ravlm.runtime.opening import load
    from edge_ravlm.runtime.transfer import import_rows, read_rows

    rows, base = read_rows(source)
    with load(bundle, memory) as ravlm:
        with progress("importing", len(rows)) as advance:
            outcome = import_rows(ravlm, rows, base, advance)
        _compact(ravlm.memory)
    for sentence in outcome.skipped:
        complain(f"skipped: {sentence}")
    result = {"added": outcome.added, "present": outcome.present, "skipped": len(outcome.skipped)}
    _result(result, f"{outcome.added} added, {outcome.present} there before, {len(outcome.skipped)} skipped", json)
    return 1 if outcome.skipped else 0


@app.command
def search(
    memory: Path,
    query: str,
    /,
    *,
    image: Path | None = None,
    k: int = 10,
    tag: Tags = None,
    bundle: str = "starter",
    json: bool = False,
) -> None:
    """Find the memories nearest to a text, to a picture, or to both.

    Args:
        memory: the memory's folder.
        query: a text, or the path of a picture.
        image: a picture to look for as well, if the query is a text.
        k: how many to show, at most.
        tag: NAME=VALUE, only memories with this tag; may be given several times.
        bundle: the one that the memory was taught with: a folder, a .zip, or 'starter'.
        json: print one JSON object.
    """
    from edge_ravlm.frames import IMAGE_SUFFIXES, read_image

    pictured = _is_file(query) or Path(query).suffix.lower() in IMAGE_SUFFIXES  # a misspelt path is no text
    shown = Path(query) if image is None and pictured else image
    text = None if image is None and shown is not None else query
    picture = None if shown is None else read_image(shown)
    with load_to_ask(bundle, memory) as ravlm:
        found = ravlm.search(text=text, picture=picture, k=k, where=where_tags(tag))
    if json:
        say_json({"hits": [{"id": hit.id, "text": hit.text, "score": round(hit.score, 4)} for hit in found]})
    else:
        table("", ("id", "score", "text"), [(str(hit.id), f"{hit.score:.3f}", hit.text) for hit in found])


@app.command
def remove(memory: Path, ids: list[int], /, *, json: bool = False) -> int:
    """Forget entries by id; fails if none of them is there.

    Args:
        memory: the memory's folder.
        ids: of entries, as `list` and `search` show them.
        json: print one JSON object.
    """
    from edge_ravlm.runtime.memory import Where

    with _open(memory) as store:
        known = {entry.id for entry in store.entries(Where(ids=frozenset(ids)))}
        unknown = sorted(set(ids) - known)
        removed = store.remove(ids)
        result = {"removed": removed, "unknown": unknown, "entries": len(store)}
        _result(result, f"{removed} removed", json)
    if unknown:
        complain(f"not in memory '{memory}': {', '.join(map(str, unknown))}; see `edge-ravlm memory list`")
    return 0 if removed else 1


@app.command(name="list")
def list_(memory: Path, /, *, tag: Tags = None, limit: Count = 50, json: bool = False) -> None:
    """List what a memory holds.

    Args:
        memory: the memory's folder.
        tag: NAME=VALUE, only memories with this tag; may be given several times.
        limit: how many to show, at most.
        json: print one JSON object.
    """
    from itertools import islice

    with _open(memory, read_only=True) as store:
        where = where_tags(tag)
        total = store.count(where)
        found = list(islice(store.entries(where), limit))
    if json:
        rows = [{"id": e.id, "text": e.text, "answer": e.answer, "tags": dict(e.tags), "modality": e.modality,
                 "time": e.time} for e in found]  # fmt: skip
        say_json({"entries": total, "shown": rows})
        return
    rows_ = [(str(e.id), e.modality, e.text, e.answer or "", _tag_text(e.tags)) for e in found]
    table(f"{len(found)} of {total}", ("id", "kind", "text", "answer", "tags"), rows_)


@app.command
def compact(memory: Path, /, *, json: bool = False) -> None:
    """Fold what was added and removed since the last time into a new index.

    A memory in use does so by itself when searches would gain from it.

    Args:
        memory: the memory's folder.
        json: print one JSON object.
    """
    with _open(memory) as store:
        _compact(store)
        _result(store.stats(), f"{len(store)} entries in one index", json)


@app.command
def verify(memory: Path, /, *, json: bool = False) -> int:
    """Check every byte of a memory against what was written; where it may be written, mend its index of words.

    Args:
        memory: the memory's folder.
        json: print one JSON object.
    """
    from edge_ravlm.runtime.memory import Memory

    with Memory.open(memory, create=False, read_only=not _may_write(memory), auto_compact=False) as store:
        problems = store.verify()
        entries = len(store)
    if json:
        say_json({"ok": not problems, "entries": entries, "problems": problems})
    else:
        say(f"{entries} entries, all as they were written." if not problems else "\n".join(problems))
    return 1 if problems else 0


@app.command
def reembed(memory: Path, /, *, bundle: str = "starter", json: bool = False) -> None:
    """Embed a memory again, after its bundle was replaced by one with another encoder.

    Args:
        memory: the memory's folder.
        bundle: the new one: a folder, a .zip, or 'starter'.
        json: print one JSON object.
    """
    from edge_ravlm.runtime import transfer
    from edge_ravlm.runtime.opening import load

    with load(bundle) as ravlm, _open(memory) as store:
        with progress("embedding", len(store)) as advance:
            without = transfer.reembed(ravlm, store, advance)
        if without:
            complain(f"{len(without)} entries had no picture kept and are found by text only now")
        result = {"entries": len(store), "without_picture": len(without)}
        _result(result, f"{len(store)} entries embedded again", json)


@app.command
def export(memory: Path, folder: Path, /, *, json: bool = False) -> None:
    """Write a memory as memories.jsonl with its pictures; `memory import` reads it back.

    Args:
        memory: the memory's folder.
        folder: the folder to make; nothing may be there yet.
        json: print one JSON object.
    """
    from edge_ravlm.runtime.transfer import export_memory

    if folder.resolve().is_relative_to(memory.resolve()):
        raise UsageError(
            f"output '{folder}'", expected="a place outside the memory", got="one in it", do="choose another place"
        )
    with _open(memory, read_only=True) as store, progress("writing", len(store)) as advance:
        count = export_memory(store, folder, advance)
    _result({"entries": count, "folder": str(folder)}, f"{count} entries in {folder}", json)


def parse_tags(pairs: list[str] | None) -> dict[str, str]:
    """NAME=VALUE pairs; raises UsageError for anything else."""
    tags = dict(pair.partition("=")[::2] for pair in pairs or [])
    for name, value in tags.items():
        if not name or f"{name}={value}" not in (pairs or []):
            raise UsageError("tag", expected="NAME=VALUE", got=f"'{name}'", do="write for instance --tag camera=drive")
    return tags


def where_tags(pairs: list[str] | None) -> Where:
    """A filter by NAME=VALUE pairs, which match what `list` shows so: texts, numbers and truth values."""
    from edge_ravlm.runtime.memory import Where

    return Where(tags={name: _readings(text) for name, text in parse_tags(pairs).items()})


def load_to_ask(bundle: str, memory: Path, **settings: Any) -> Ravlm:
    """A bundle and a memory that is there; asking never writes, so read-only media serve as well."""
    from edge_ravlm.runtime.opening import load

    return load(bundle, memory, create=False, read_only=not os.access(memory, os.W_OK), **settings)


def _readings(text: str) -> str | tuple[str | int | float | bool, ...]:
    """A tag's value as a text, and as the number or truth value that it reads as, if a tag can hold that."""
    from edge_ravlm.runtime.memory.entries import check_tag

    try:
        value = msgspec.json.decode(text.lower(), type=int | float | bool)
        check_tag("value", value)
    except (msgspec.MsgspecError, ValueError, UsageError):
        return text
    return text, value


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than any file's name
        return False


def _compact(store: Memory) -> None:
    with progress("building the index") as advance:
        store.compact(lambda done, total: advance(completed=done, total=total))


def _open(memory: Path, *, read_only: bool = False) -> Memory:
    from edge_ravlm.runtime.memory import Memory

    return Memory.open(memory, create=False, read_only=read_only)


def _may_write(memory: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (memory, *memory.glob("memory.db*")))


def _tag_text(tags: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in tags.items())


def _result(value: object, line: str, json: bool) -> None:
    if json:
        say_json(value)
    else:
        say(line)
