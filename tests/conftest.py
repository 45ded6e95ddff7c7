"""What tests of several rooms use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from edge_ravlm.bundle import Bundle, write_bundle

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each processor: torch shall not want them all in every one
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def one_backend() -> Iterator[None]:
    """Which backend is faster here is no matter of a test; those of the other one name it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_RAVLM_BACKEND", "onnxruntime")
        yield


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter as it would be without a decoder and without a head that puts pictures among texts."""
    import onnx

    from edge_ravlm.export.onnx_graph import prune

    starter = Bundle.open("starter")
    manifest, flavor = starter.manifest, starter.manifest.flavor("cpu-u8")
    words = () if manifest.fusion is None else (manifest.fusion.tokenizer,)
    models = () if flavor.fusion is None else (flavor.fusion.prefill.file, flavor.fusion.step.file)
    contents = {one.path: starter.read(one.path) for one in manifest.files if one.path not in {*words, *models}}
    model = onnx.load_from_string(contents[flavor.image.file])
    for output in [output for output in model.graph.output if output.name == "meaning"]:
        model.graph.output.remove(output)
    prune(model.graph)
    contents[flavor.image.file] = model.SerializeToString()
    bare = msgspec.structs.replace(flavor, fusion=None)
    changed = msgspec.structs.replace(manifest, flavors={"cpu-u8": bare}, fusion=None, meaning_space=None)
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    write_bundle(folder, changed, contents)
    return folder


@pytest.fixture(scope="session")
def plain(plain_folder: Path) -> Bundle:
    """The same, open."""
    return Bundle.open(plain_folder)


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
