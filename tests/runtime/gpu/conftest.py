"""Machines with a GPU that is none, and pictures for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_gpu
import numpy as np
import pytest
from fake_gpu import Gpu
from numpy.typing import NDArray
from small_model import CAPABILITY, OUTPUTS, PROFILE, SMALL, SPEC, entry

import edge_ravlm.engines
from edge_ravlm.engines import engine_cache, store
from edge_ravlm.runtime.backends import cuda, tensorrt
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession

Pictures = Callable[..., NDArray[np.uint8]]
Install = Callable[..., Gpu]


@pytest.fixture
def pictures() -> Pictures:
    """pictures(count, side, seed=0): random ones."""
    return lambda count, side, seed=0: np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="session")
def reference() -> Callable[[NDArray[np.uint8]], list[NDArray[Any]]]:
    """What ONNX Runtime says of pictures."""
    session = OnnxRuntimeSession.open(SMALL, SPEC, 1)
    return lambda images: session.run({"image": images}, OUTPUTS)


@pytest.fixture
def gpus() -> Iterator[list[Gpu]]:
    """Those of a test; each is checked at the end."""
    made: list[Gpu] = []
    yield made
    for gpu in made:
        gpu.check()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: list[Gpu]) -> Install:
    """bare(name="tensorrt", **options): a machine with that library and GPU."""
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cuda, "_devices", {})
    for module in (edge_ravlm.engines, tensorrt):
        monkeypatch.setattr(module, "compute_capability", lambda: CAPABILITY)

    def install(name: str = "tensorrt", **options: Any) -> Gpu:
        gpu = Gpu(**options)
        found: dict[str, ModuleType | None] = {
            "tensorrt": None,
            "tensorrt_rtx": None,
            "pycuda.driver": fake_gpu.pycuda_driver(gpu),
            "cuda.bindings.driver": fake_gpu.cuda_bindings_driver(gpu),
            name: fake_gpu.tensorrt(gpu, name),
        }
        for known, module in found.items():
            monkeypatch.setitem(sys.modules, known, module)
        gpus.append(gpu)
        return gpu

    return install


@pytest.fixture
def machine(bare: Install) -> Install:
    """The same with an engine of the small model in the user's cache."""

    def install(name: str = "tensorrt", **options: Any) -> Gpu:
        gpu = bare(name, **options)
        store(engine_cache(), entry(name, gpu.version), fake_gpu.plan(SMALL, PROFILE))
        return gpu

    return install
