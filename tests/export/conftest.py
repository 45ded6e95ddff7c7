"""What several tests of the export half share."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def torchvision_imports() -> Iterator[None]:
    """Lets torchvision be imported beside a CPU build of torch; timm, open_clip and transformers import it.

    PyPI's torchvision is built against CUDA: beside the CPU torch that development is pinned to, its compiled part
    does not load, and its import fails on two operators that are not there. They are declared here, without any code
    behind them: no teacher calls them.
    """
    import torch

    spec = find_spec("torchvision")
    assert spec is not None, "the dev extra brings torchvision"
    assert spec.origin is not None
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del operators  # it has to live as long as the operators
