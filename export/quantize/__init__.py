"""Quantization, one file per flavour, named after it; each has the same ``quantize``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from edge_ravlm.export.quantize.candidates import Calibration


class Quantize(Protocol):
    """What every flavour's file has as ``quantize``."""

    def __call__(
        self,
        model: onnx.ModelProto,
        images: Sequence[NDArray[np.uint8]],
        advance: Callable[[], object] = ...,
        *,
        keep_float: Collection[str] = (),
        calibrations: Sequence[Calibration] = ...,
    ) -> onnx.ModelProto:
        """Quantize a full-precision model with the input ``image``, uint8 [n, h, w, 3].

        Args:
            model: left as it is.
            images: calibration inputs, uint8 [1, h, w, 3] each.
            advance: called as the work goes on, twice per image.
            keep_float: names of convolutions that stay in floating point.
            calibrations: ways to choose activation ranges; the one that gives the nearest model is kept.
        """
        ...


def quantizer(flavor: str) -> Quantize:
    """The function of a flavour, its libraries imported only now."""
    module = import_module(f"edge_ravlm.export.quantize.{flavor.replace('-', '_')}")
    return cast(Quantize, module.quantize)
