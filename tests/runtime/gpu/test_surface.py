"""Whether NVIDIA's libraries have what ``nvidia.py`` says they have, held against those of them that are installed."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from typing import Any

import pytest

from edge_ravlm.runtime.backends import nvidia

CLASSES = {
    "IExecutionContext": nvidia.ExecutionContext,
    "ICudaEngine": nvidia.CudaEngine,
    "Runtime": nvidia.EngineRuntime,
    "IRuntimeConfig": nvidia.RuntimeConfig,
    "IRuntimeCache": nvidia.RuntimeCache,
}
ENUMERATIONS = (
    ("TensorIOMode", "INPUT"),
    ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
    ("ILogger", "Severity"),
)


def surface(protocol: type) -> dict[str, list[str] | None]:
    """A protocol's methods with the names of their arguments, and its attributes with None."""
    found: dict[str, list[str] | None] = dict.fromkeys(vars(protocol).get("__annotations__", {}))
    for name, member in vars(protocol).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            arguments = list(inspect.signature(member).parameters.values())[1:]
            found[name] = ["" if one.kind is one.POSITIONAL_ONLY else one.name for one in arguments]
    return found


def fits(arguments: list[str], signatures: list[list[str]]) -> bool:
    """Whether one of the signatures can be called so; "" stands for any name."""
    return any(
        all(ours in {"", theirs} for ours, theirs in zip(arguments, signature, strict=False))
        for signature in signatures
        if len(signature) >= len(arguments)
    )


@pytest.mark.export
@pytest.mark.parametrize("name", CLASSES)
def test_tensorrt_rtx_has_what_is_used(name: str) -> None:
    found = getattr(pytest.importorskip("tensorrt_rtx"), name)
    for member, arguments in surface(CLASSES[name]).items():
        assert hasattr(found, member), member
        if arguments is not None:
            texts = re.findall(rf"{member}\(self[^,)]*(.*)\) ->", getattr(found, member).__doc__)
            signatures = [re.findall(r"(?:^|, )(\w+):", text) for text in texts]
            assert fits(arguments, signatures), (member, signatures)


@pytest.mark.export
def test_tensorrt_rtx_has_the_constants() -> None:
    library = pytest.importorskip("tensorrt_rtx")
    for kind, value in (*ENUMERATIONS, ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")):
        assert hasattr(getattr(library, kind), value)
    for kind in ("HALF", "FLOAT", "UINT8", "INT64"):
        assert library.nptype(getattr(library.DataType, kind))


@pytest.mark.parametrize("name", ["IExecutionContext", "ICudaEngine", "Runtime"])
def test_tensorrt_has_what_is_used(name: str) -> None:
    """By its stubs, which `.ci/run` keeps apart: with their dependencies they are gigabytes."""
    try:
        (path,) = (one for one in files("tensorrt-stubs") or () if one.name == "tensorrt.pyi")
    except PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed")
    text = path.read_text(encoding="utf-8")  # as a whole it is no valid Python
    (source,) = re.findall(rf"^class {name}:\n.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    (found,) = ast.parse(source).body
    assert isinstance(found, ast.ClassDef)
    signatures: dict[str, list[list[str]]] = {}
    for node in found.body:
        if isinstance(node, ast.FunctionDef):
            signatures.setdefault(node.name, []).append([argument.arg for argument in node.args.args[1:]])
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            signatures.setdefault(node.target.id, [])
    for member, arguments in surface(CLASSES[name]).items():
        assert member in signatures, member
        assert arguments is None or fits(arguments, signatures[member]), (member, signatures[member])


def test_cuda_bindings_have_what_is_used() -> None:
    driver = _imported("cuda.bindings.driver")
    for member, arguments in surface(nvidia.GraphDriver).items():
        found = getattr(driver, member)
        if arguments is not None and member.startswith("cu"):
            (text,) = re.findall(rf"{member}\((.*)\)", found.__doc__.splitlines()[0])
            assert len(text.split(",")) == len(arguments), text
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert int(driver.CUstream(5)) == 5
    assert int(driver.CUresult.CUDA_SUCCESS) == 0


def test_pycuda_has_what_is_used() -> None:
    driver = _imported("pycuda.driver")
    protocols = {
        "Device": nvidia.CudaDevice,
        "Context": nvidia.Context,
        "Stream": nvidia.CudaStream,
        "DeviceAllocation": nvidia.Allocation,
        "PagelockedHostAllocation": nvidia.Pinned,
    }
    for name in surface(nvidia.CudaDriver):
        assert hasattr(driver, name), name
    for name, protocol in protocols.items():
        for member in surface(protocol):
            assert hasattr(getattr(driver, name), member), (name, member)
    assert driver.device_attribute.INTEGRATED
    assert driver.host_alloc_flags.DEVICEMAP


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name}: {error}")
