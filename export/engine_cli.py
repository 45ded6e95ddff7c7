"""``edge-ravlm engine``: TensorRT engines for a bundle that was exported already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from edge_ravlm.console import complain, progress, say, say_json
from edge_ravlm.errors import UsageError

if TYPE_CHECKING:
    from edge_ravlm.bundle import Bundle
    from edge_ravlm.manifest import Engine
    from edge_ravlm.targets import Target

app = cyclopts.App(name="engine", help="Build TensorRT engines.")


@app.command
def build(
    bundle: str,
    /,
    *,
    target: str,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    max_batch: int = 8,
    json: bool = False,
) -> None:
    """Build the engines of a bundle's models for a device's GPU.

    For RTX GPUs that works on any x86-64 machine; for a Jetson it has to run on the Jetson. The bundle stays as it is:
    the engines go into the user's cache, where every bundle with the same model finds them, or into a folder.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        target: the device's profile, for instance rtx-40 or jetson-orin-nano; an unknown one is answered with all.
        output: a folder for the engines, if not the cache.
        max_batch: the most pictures that one run of a model may take.
        json: print one JSON object.
    """
    from edge_ravlm.bundle import Bundle
    from edge_ravlm.engines import engine_cache
    from edge_ravlm.targets import target as profile

    wanted, folder = profile(target), output or engine_cache()
    if max_batch < 1:
        raise UsageError("max-batch", expected="1 or more", got=str(max_batch), do="allow for instance 8")
    done = []
    for engine, size in _built(Bundle.open(bundle), wanted, folder, max_batch):
        done.append(_row(engine, size))
        if not json:
            say(f"{folder / engine.file}: {size:,} bytes, for {_chips(engine)}, built in {engine.seconds:.1f} s")
    if json:
        say_json({"folder": str(folder), "target": target, "engines": done})


def _built(bundle: Bundle, target: Target, folder: Path, max_batch: int) -> Iterator[tuple[Engine, int]]:
    """Each engine and its size, once it is in the folder."""
    from edge_ravlm.engines import check_writable, store
    from edge_ravlm.export.engines import Batch, Library, builds

    library = Library(target)
    manifest = bundle.manifest
    flavor, closer = manifest.flavor(target.flavor), manifest.closer
    sides = None if closer is None else (closer.side, manifest.preprocess.height)
    check_writable(folder)  # before the minutes, not after
    for file in dict.fromkeys(m.file for m in (flavor.image, flavor.text) if m.backend == "tensorrt"):
        complain(f"building engines of {file} for {target.name} with {library.title} …")
        with _phases(file) as report:
            batch = Batch(most=max_batch, sides=sides)
            for engine, plan in builds(bundle.read(file), file, target, batch=batch, progress=report):
                yield store(folder, engine, plan), len(plan)


@contextmanager
def _phases(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that shows the steps of whatever phase a build is in."""
    with progress(f"building {what}") as advance:
        yield lambda _phase, done, total: advance(completed=done, total=total)


def _chips(engine: Engine) -> str:
    return "compute capability " + ", ".join(engine.compute_capabilities)


def _row(engine: Engine, size: int) -> dict[str, Any]:
    import msgspec

    return {**msgspec.to_builtins(engine), "bytes": size}
