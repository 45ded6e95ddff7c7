"""Image backbones of ``timm``, with its own weights from the hub or with a file of yours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from edge_ravlm.export.teachers import ImageTeacher
from edge_ravlm.export.teachers.vision import Colours, NetworkTeacher
from edge_ravlm.export.teachers.weights import reading
from edge_ravlm.manifest import Source


def image_teacher(name: str, side: int | None) -> ImageTeacher:
    """The backbone of "timm:ARCH" or "timm:ARCH/FILE".

    The embedding is what its classifier would see; the tokens are the last stage's grid.
    """
    architecture, _, file = name.partition(":")[2].partition("/")
    expected = "a timm architecture, and weights on the hub or in a file that are all of it"
    with reading(f"teacher '{name}'", expected, "check the names, the network and the file"):
        published = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
        weights = {"pretrained_cfg_overlay": _of_file(file, published.classifier)} if file else {}
        resized = {"img_size": side} if side and published.fixed_input_size else {}
        model = timm.create_model(architecture, pretrained=True, num_classes=0, **weights, **resized)
    data = resolve_model_data_config(model)
    source = Source(
        name=f"{architecture}/{Path(file).name}" if file else architecture,
        origin="a local file" if file else f"Hugging Face hub {published.hf_hub_id}",
        licence="not stated by the file" if file else published.license or "not stated by timm",
    )
    colours = Colours.of_unit(tuple(data["mean"]), tuple(data["std"]))
    return NetworkTeacher(name, _Backbone(model), side or data["input_size"][-1], colours, (source,))


class _Backbone(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 [n, 3, side, side] -> features [n, dim], tokens [n, cells, c] without class and register tokens."""
        final, (grid,) = self.model.forward_intermediates(images, indices=1, norm=True, output_fmt="NCHW")
        return self.model.forward_head(final, pre_logits=True), grid.flatten(2).transpose(1, 2)


def _of_file(file: str, classifier: str | tuple[str, ...] | None) -> dict[str, Any]:
    """The file's weights without their classifier, as timm's loader takes them strictly.

    Given the file itself and no classes, timm would load what happens to fit and leave the rest random.
    """
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    drop = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    state = {key: value for key, value in load_state_dict(file).items() if key not in drop}
    return {"state_dict": state, "num_classes": 0, "label_offset": 0}
