"""A bundle and a memory, by their names: opened, and ready to be taught and asked."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.runtime.deadline import check_budget
from edge_ravlm.runtime.memory import Memory, Space
from edge_ravlm.runtime.pipeline import Ravlm

DEFAULT_BUDGET_MS = 100.0

R = TypeVar("R", bound=Ravlm)


class _Scratch(Ravlm):
    """With a memory of its own that goes when it is closed."""

    _folder: tempfile.TemporaryDirectory[str]

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


def load(
    bundle: str | Path | Bundle = STARTER,
    memory: str | Path | None = None,
    *,
    budget_ms: float = DEFAULT_BUDGET_MS,
    flavor: str = "cpu-u8",
    threads: int | None = None,
    create: bool = True,
    read_only: bool = False,
    backend: str | None = None,
) -> Ravlm:
    """Open a bundle and a memory.

    Args:
        bundle: a folder, a ``.zip``, ``"starter"``, or an opened Bundle.
        memory: a folder, created if it is not there; None keeps nothing after ``close``.
        budget_ms: from a frame's capture to its answer.
        flavor: which of the bundle's quantization flavours to run.
        threads: CPU threads of the image encoder and the fusion decoder; None takes up to four.
        create: whether a memory may be made where there is none.
        read_only: never write to the memory.
        backend: what runs the image encoder on a CPU: ``auto``, ``onnxruntime`` or ``openvino``. None is what the
            environment variable ``EDGE_RAVLM_BACKEND`` says, else ``auto``: ONNX Runtime at first, and some seconds
            later OpenVINO, where that is installed and faster (measured once, and remembered).
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    threads = usual_threads() if threads is None else threads
    check_budget(budget_ms)
    if memory is not None:
        store = open_memory(opened, memory, create=create and not read_only, read_only=read_only)
        return _ready(Ravlm, opened, store, flavor=flavor, budget_ms=budget_ms, threads=threads, backend=backend)
    scratch = tempfile.TemporaryDirectory(prefix="edge-ravlm-")
    try:
        store = open_memory(opened, Path(scratch.name) / "scratch.memory")
        ravlm = _ready(_Scratch, opened, store, flavor=flavor, budget_ms=budget_ms, threads=threads, backend=backend)
    except BaseException:
        scratch.cleanup()
        raise
    ravlm._folder = scratch
    return ravlm


def usual_threads() -> int:
    """CPU threads of the models where nobody says how many: up to four, more bring little."""
    return min(4, os.cpu_count() or 1)


def open_memory(bundle: Bundle, path: str | Path, *, create: bool = True, read_only: bool = False) -> Memory:
    """The memory at ``path`` with the bundle's spaces; raises SpaceMismatch if it was made with others."""
    return Memory.open(path, spaces_of(bundle), create=create, read_only=read_only)


def _ready(kind: type[R], bundle: Bundle, memory: Memory, **settings: Any) -> R:
    try:
        return kind(bundle, memory, **settings)
    except BaseException:
        memory.close()
        raise


def spaces_of(bundle: Bundle) -> dict[str, Space]:
    """The vector fields of a memory for this bundle."""
    manifest = bundle.manifest
    spaces = {"image": manifest.image_space, "text": manifest.text_space, "meaning": manifest.meaning_space}
    return {field: Space(space.id, space.dim) for field, space in spaces.items() if space is not None}
