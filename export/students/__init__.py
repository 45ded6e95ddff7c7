"""The small encoders that a bundle ships, each distilled from a teacher; image students by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import nn

from edge_ravlm.export.students.depthwise import lite_backbone
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.export.students.plain import PlainBackbone
from edge_ravlm.export.teachers.weights import package_source
from edge_ravlm.manifest import Source

Family = Literal["depthwise", "plain", "tiny"]


@dataclass(frozen=True)
class StudentKind:
    """One kind of image student.

    Attributes:
        name: what a recipe calls it.
        family: "depthwise" (few operations), "plain" (3x3 convolutions, which integer units like) or "tiny" (for
            pictures of 112 to 160 px).
        side: of the square input in pixels that it was drawn for.
        prior: its place by expected accuracy, larger is better: published ImageNet figures, then size.
        backbone: makes it for a side in pixels.
        packages: names in ``packages.toml`` that its first weights come from; without any they are random.
    """

    name: str
    family: Family
    side: int
    prior: int
    backbone: Callable[[int], nn.Module]
    packages: tuple[str, ...] = ()

    def build(self, dim: int = 256, side: int | None = None) -> ImageStudent:
        """The student before distillation.

        Args:
            dim: numbers per embedding.
            side: of its square input in pixels; by default the kind's own.
        """
        side = side or self.side
        return ImageStudent(self.backbone(side), dim, side)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of its first weights, for the manifest."""
        return tuple(package_source(name) for name in self.packages)


def _plain(widths: tuple[int, ...], depths: tuple[int, ...]) -> Callable[[int], nn.Module]:
    return lambda _side: PlainBackbone(widths, depths)


_KINDS = (
    StudentKind(
        "efficientnet-lite0", "depthwise", 224, 5, lambda side: lite_backbone(0, side), ("efficientnet-lite0",)
    ),
    StudentKind("repvgg-a0", "plain", 224, 4, _plain((48, 48, 96, 192, 1280), (2, 4, 14, 1))),
    StudentKind("repvgg-small", "plain", 192, 2, _plain((32, 32, 64, 128, 320), (2, 4, 8, 1))),
    StudentKind("efficientnet-lite0-128", "tiny", 128, 3, lambda side: lite_backbone(0, side), ("efficientnet-lite0",)),
    StudentKind("repvgg-tiny", "tiny", 128, 1, _plain((24, 24, 48, 96, 256), (1, 2, 4, 1))),
)

STUDENTS: Mapping[str, StudentKind] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""Image students by name."""
