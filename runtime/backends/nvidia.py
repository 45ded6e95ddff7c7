"""The part of NVIDIA's libraries that the TensorRT backend uses, as types.

None of them serves a type check: PyPI's ``tensorrt`` is gigabytes, its ``tensorrt-stubs`` are no Python that mypy could
parse, and PyCUDA has no types and is built from source. What stands here follows their own descriptions; the tests hold
it against TensorRT-RTX as installed, and against the stubs and the others where somebody has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

# -- tensorrt and tensorrt_rtx, version 10.3 and 1.0 or newer ----------------------------------------------------------


class ExecutionContext(Protocol):
    """``IExecutionContext``: one set of shapes and addresses at a time. Methods that return False have failed."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Of one input, inside of the profile's range."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Of an output, once those of all inputs are set."""

    def get_max_output_size(self, name: str) -> int:
        """Bytes of an output at most; -1 where nobody knows."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where on the device an input or output lies."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Scratch memory, for a context that was made without."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue a run; shapes, addresses and inputs have to stay until it is done."""


class RuntimeCache(Protocol):
    """``IRuntimeCache`` of TensorRT-RTX: kernels that were compiled for the GPU at hand."""

    def deserialize(self, blob: bytes) -> bool:
        """False where it was made by another version or for another GPU."""

    def serialize(self) -> Any:
        """All of it, as an ``IHostMemory`` that ``bytes`` takes."""


class RuntimeConfig(Protocol):
    """``IRuntimeConfig`` of TensorRT-RTX."""

    cuda_graph_strategy: object

    def create_runtime_cache(self) -> RuntimeCache:
        """An empty one."""

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        """To be used by the contexts that are made with this configuration."""


class CudaEngine(Protocol):
    """``ICudaEngine``."""

    num_io_tensors: int
    device_memory_size_v2: int

    def get_tensor_name(self, index: int) -> str:
        """Of an input or output."""

    def get_tensor_mode(self, name: str) -> object:
        """``TensorIOMode.INPUT`` or ``OUTPUT``."""

    def get_tensor_dtype(self, name: str) -> object:
        """A ``DataType``."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """-1 where a side is dynamic."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """The least, best and largest shape of an input."""

    def create_execution_context(self, how: object, /) -> ExecutionContext | None:
        """From an ``ExecutionContextAllocationStrategy`` or an ``IRuntimeConfig``; None where memory is short."""

    def create_runtime_config(self) -> RuntimeConfig:
        """The defaults."""


class EngineRuntime(Protocol):
    """``Runtime``: what opens engines."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        """None where it was built by another version or for another GPU; the log says what it is."""


class TensorRT(Protocol):
    """Either module. The attributes are classes and enumerations, of which mypy need not know more."""

    __version__: str
    ExecutionContextAllocationStrategy: Any
    TensorIOMode: Any
    ILogger: Any

    def Runtime(self, logger: object) -> EngineRuntime:  # noqa: N802  # theirs
        """A runtime that tells a log what is wrong."""

    def nptype(self, trt_type: Any) -> DTypeLike:
        """What NumPy calls a type; raises TypeError where it has none."""


# -- pycuda.driver, 2024.1 or newer ------------------------------------------------------------------------------------


class Context(Protocol):
    """``Context``; what is made while it is current belongs to it, and has to be released while it is current."""

    def push(self) -> None:
        """Make it this thread's."""

    def pop(self) -> None:
        """Make the one before it this thread's again; static there, it pops whatever is on top."""


class CudaDevice(Protocol):
    """``Device``."""

    def get_attribute(self, attribute: Any) -> int:
        """A ``device_attribute``."""

    def retain_primary_context(self) -> Context:
        """The context that all libraries in this process share; not pushed."""


class Allocation(Protocol):
    """``DeviceAllocation``."""

    def __int__(self) -> int: ...

    def free(self) -> None:
        """Give it back."""


class Pinned(Protocol):
    """``PagelockedHostAllocation``, the ``base`` of what ``pagelocked_empty`` returns."""

    def get_device_pointer(self) -> int:
        """Where the device sees it, if it is mapped."""

    def free(self) -> None:
        """Give it back; the array must not be touched from then on."""


class CudaStream(Protocol):
    """``Stream``; it is given back when the last reference goes."""

    handle: int

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""


class CudaDriver(Protocol):
    """The module."""

    device_attribute: Any
    host_alloc_flags: Any

    def init(self) -> None:
        """Before anything else; raises where there is no driver."""

    def Device(self, number: int) -> CudaDevice:  # noqa: N802  # theirs
        """By its number."""

    def Stream(self) -> CudaStream:  # noqa: N802  # theirs
        """A new one."""

    def mem_alloc(self, bytes: int) -> Allocation:  # noqa: A002  # theirs
        """Device memory."""

    def pagelocked_empty(self, shape: int, dtype: DTypeLike, *, mem_flags: int) -> NDArray[np.uint8]:
        """Host memory that the device can copy from and to while the processor does something else."""

    def memcpy_htod_async(self, dest: Allocation, src: NDArray[np.uint8], stream: CudaStream) -> None:
        """Queue a copy to the device, as many bytes as ``src`` has."""

    def memcpy_dtoh_async(self, dest: NDArray[np.uint8], src: Allocation, stream: CudaStream) -> None:
        """Queue a copy from the device, as many bytes as ``dest`` has."""


# -- cuda.bindings.driver, 12.6 or newer -------------------------------------------------------------------------------


class GraphDriver(Protocol):
    """The module: each function returns a ``CUresult``, which is 0 when all is well, and what it is asked for."""

    CUstreamCaptureMode: Any

    def CUstream(self, handle: int) -> Any:  # noqa: N802  # theirs
        """The stream with this handle, whoever made it."""

    def cuStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any]:  # noqa: N802  # theirs
        """From here on, what is queued is recorded instead."""

    def cuStreamEndCapture(self, stream: Any) -> tuple[Any, Any]:  # noqa: N802  # theirs
        """What was recorded, as a graph."""

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]:  # noqa: N802  # theirs
        """The graph in a form that can be launched."""

    def cuGraphLaunch(self, executable: Any, stream: Any) -> tuple[Any]:  # noqa: N802  # theirs
        """Queue it."""

    def cuGraphExecDestroy(self, executable: Any) -> tuple[Any]:  # noqa: N802  # theirs
        """Give it back."""

    def cuGraphDestroy(self, graph: Any) -> tuple[Any]:  # noqa: N802  # theirs
        """Give it back; what was instantiated from it stays."""
