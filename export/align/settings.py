"""What a recipe says about aligning pictures with texts."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Source = Literal["stamps", "home", "emoji", "clipart", "gcompris"]


class AlignSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How pictures are aligned with texts.

    Attributes:
        sources: of cut-outs with words; without any the bundle has no meaning space.
        views: of each cut-out; half of them on photographs.
        hidden: units of the head.
        steps, batch, rate, decay: of AdamW with a one-cycle rate.
        dropout: of features, and of hidden units.
        temperature: of the contrastive softmax.
        classes: weight of what the classifier sees, beside the texts' 1.
    """

    sources: tuple[Source, ...] = ()
    views: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    hidden: Annotated[int, msgspec.Meta(ge=8, le=8192)] = 1024
    steps: Annotated[int, msgspec.Meta(ge=1)] = 500
    batch: Annotated[int, msgspec.Meta(ge=2)] = 256
    rate: Annotated[float, msgspec.Meta(gt=0)] = 2e-3
    decay: Annotated[float, msgspec.Meta(ge=0)] = 0.05
    dropout: tuple[float, float] = (0.1, 0.3)
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 0.07
    classes: Annotated[float, msgspec.Meta(ge=0)] = 2.0
