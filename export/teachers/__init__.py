"""The full-precision encoders that the students learn from, by name.

Each family is one module with ``image_teacher(name, side)``, ``text_teacher(name)`` or both, and one line in
``IMAGE_FAMILIES`` or ``TEXT_FAMILIES``. A module is imported when it is asked for: only that family's libraries have to
be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from edge_ravlm.errors import MissingExtra, UsageError, needs_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from edge_ravlm.manifest import Source

SMALLEST_SIDE, LARGEST_SIDE = 16, 4096
"""The limits of ``edge_ravlm.preprocess.Preprocess`` in pixels."""


class ImageTeacher(Protocol):
    """An image encoder to imitate.

    Attributes:
        name: as it was asked for.
        side: of the square input in pixels.
        dim: numbers per embedding.
        sources: of its weights, for the manifest.
    """

    name: str
    side: int
    dim: int
    sources: tuple[Source, ...]

    def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 BGR [n, side, side, 3] -> embedding float32 [n, dim] of unit length, tokens float32 [n, t, c].

        The tokens are the cells of a square grid, row by row. Both are on the pixels' device and have no gradient.
        """
        ...


class TextTeacher(Protocol):
    """A text encoder to imitate.

    Attributes:
        name: as it was asked for.
        dim: numbers per embedding.
        sources: of its weights, for the manifest.
        tokenizer_json: the ``tokenizers`` file that gives its token ids.
    """

    name: str
    dim: int
    sources: tuple[Source, ...]
    tokenizer_json: bytes

    def embed(
        self, texts: Sequence[str], batch_size: int = 64, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Float32 [texts, dim], L2-normalised; ``progress`` is called with (texts done, in all)."""
        ...

    def embed_ids(
        self,
        ids: Sequence[Sequence[int]],
        batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """The same for token ids that already hold the special tokens."""
        ...


@dataclass(frozen=True)
class Family:
    """Teachers that load alike.

    Attributes:
        module: where they are, in ``edge_ravlm.export.teachers``.
        extra: that brings their libraries.
        rest: what follows the family's name and a colon, as the user has to write it; empty for a single teacher.
    """

    module: str
    extra: str = "export"
    rest: str = ""


IMAGE_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "efficientnet-lite0": Family("efficientnet"),
        "efficientnet-lite1": Family("efficientnet"),
        "efficientnet-lite2": Family("efficientnet"),
        "mobilenet-v2": Family("mobilenet"),
        "hf": Family("huggingface", "huggingface", "ID_OR_FOLDER"),
        "open_clip": Family("open_clip", "open-clip", "ARCH/PRETRAINED_OR_FILE"),
        "timm": Family("timm", "timm", "ARCH[/FILE]"),
    }
)

TEXT_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "minilm-l6": Family("minilm"),
        "hf": Family("huggingface_text", "huggingface", "ID_OR_FOLDER"),
        "open_clip": Family("open_clip", "open-clip", "ARCH/PRETRAINED_OR_FILE"),
    }
)


def image_teacher(name: str, side: int | None = None) -> ImageTeacher:
    """Load an image teacher; what comes from a registry or a hub is fetched once.

    Args:
        name: one of ``IMAGE_FAMILIES`` with its rest after a colon, such as "hf:openai/clip-vit-base-patch32".
        side: of the square input in pixels; by default the one that the weights were made for.

    Raises:
        UsageError: there is no such teacher, or it cannot see that side.
        MissingExtra: its libraries are not installed, or do not fit each other.
        DataError: its weights cannot be had or read.
    """
    if side is not None and not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        expected = f"a side of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        raise UsageError(f"teacher '{name}'", expected=expected, got=f"{side}", do="choose a side within it")
    load: Callable[[str, int | None], ImageTeacher] = _loader("image_teacher", name, IMAGE_FAMILIES)
    return load(name, side)


def text_teacher(name: str) -> TextTeacher:
    """Load a text teacher: one of ``TEXT_FAMILIES``, with its rest after a colon. Raises as ``image_teacher`` does."""
    load: Callable[[str], TextTeacher] = _loader("text_teacher", name, TEXT_FAMILIES)
    return load(name)


def _loader(function: str, name: str, families: Mapping[str, Family]) -> Any:
    """The family's function of that name; Any, since the module is known only now."""
    head, _, rest = name.partition(":")
    family = families.get(head)
    if family is None or bool(rest) != bool(family.rest):
        known = ", ".join(f"{key}:{known.rest}" if known.rest else key for key, known in families.items())
        raise UsageError(function.replace("_", " "), expected=f"one of {known}", got=f"'{name}'", do="name one of them")
    try:
        with needs_extra(family.extra):
            module = import_module(f"{__name__}.{family.module}")
    except (ImportError, RuntimeError) as error:
        # Above all a torchvision built for another torch: "operator torchvision::nms does not exist".
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise MissingExtra(
            f"the libraries of teacher '{name}'",
            expected="versions that fit each other",
            got=cause,
            do="install the torchvision release that belongs to your torch",
        ) from error
    return getattr(module, function)
