"""What a backend for NVIDIA GPUs needs of CUDA: a device, memory, and captured work. Unverified on hardware.

PyCUDA has memory and streams but no graphs; for these NVIDIA's ``cuda-bindings`` takes PyCUDA's stream by its handle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_ravlm.runtime.backends.nvidia import Allocation, CudaDriver, CudaStream, GraphDriver, Pinned


class Device:
    """One GPU and its primary context, which all sessions and threads share; see ``device``.

    Attributes:
        driver: ``pycuda.driver``.
        integrated: whether it computes in the processor's own memory, as a Jetson does.
    """

    def __init__(self, number: int) -> None:
        self.driver = cast(CudaDriver, import_module("pycuda.driver"))
        self.driver.init()
        found = self.driver.Device(number)
        self.integrated = bool(found.get_attribute(self.driver.device_attribute.INTEGRATED))
        self._context = found.retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Around every use: PyCUDA does nothing, and releases nothing, in a thread whose context is another."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()


_devices: dict[int, Device] = {}
_making = threading.Lock()


def device(number: int = 0) -> Device:
    """A GPU, always the same object, so that its context is retained once.

    It stays retained until the process ends: PyCUDA can give it back only in the thread that asked for it, and making
    it anew takes longer than loading a model.

    Raises:
        ImportError: PyCUDA is not installed, or does not find CUDA.
        Exception: PyCUDA's own, where the driver or the GPU does not work.
    """
    with _making:
        if number not in _devices:
            _devices[number] = Device(number)
        return _devices[number]


class Buffer:
    """Where one tensor lies: pinned on the host, and on the device.

    On an integrated GPU both are the same memory, mapped for the device, and there is nothing to copy. The device's
    context has to be current for all but ``array``.

    Args:
        device: on which.
        nbytes: of the largest tensor that will lie there.

    Attributes:
        address: on the device.
        nbytes: as given.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self._driver, self.nbytes = device.driver, nbytes
        flags = self._driver.host_alloc_flags.DEVICEMAP if device.integrated else 0
        self._host = self._driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        self._pinned = cast(Pinned, self._host.base)
        self._memory: Allocation | None = None
        try:
            if device.integrated:
                self.address = int(self._pinned.get_device_pointer())
            else:
                self._memory = self._driver.mem_alloc(nbytes)
                self.address = int(self._memory)
        except BaseException:
            self._pinned.free()
            raise

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The host's side as an array; not to be touched while work on it is queued, nor after ``free``."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        return self._host[: count * kind.itemsize].view(kind).reshape(shape)

    def upload(self, nbytes: int, stream: CudaStream) -> None:
        """Queue the copy of the first bytes to the device."""
        if self._memory is not None:
            self._driver.memcpy_htod_async(self._memory, self._host[:nbytes], stream)

    def download(self, nbytes: int, stream: CudaStream) -> None:
        """Queue the copy of the first bytes from the device."""
        if self._memory is not None:
            self._driver.memcpy_dtoh_async(self._host[:nbytes], self._memory, stream)

    def free(self) -> None:
        """Give both back; nothing may be queued for them, and it may be called once."""
        try:
            if self._memory is not None:
                self._memory.free()
        finally:
            self._pinned.free()


class Refused(Exception):
    """Work that CUDA does not capture; the work itself may be fine."""


class Graph:
    """Work on a stream that was captured, and is launched in one piece.

    Args:
        driver: ``cuda.bindings.driver``.
        stream: where it is captured and launched.
        work: queues what is to be captured, on that stream and in this thread; returns whether it could.

    Raises:
        Refused: it cannot be captured; the stream is as it was before.
    """

    def __init__(self, driver: GraphDriver, stream: CudaStream, work: Callable[[], bool]) -> None:
        self._driver, self._stream = driver, driver.CUstream(stream.handle)
        # Other sessions may allocate meanwhile, in their own threads.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked("begin", driver.cuStreamBeginCapture(self._stream, mode))
        problem = "the library queued nothing"
        try:
            if work():
                problem = ""
        except Exception as error:
            problem = str(error)
        finally:  # whatever happened, the stream has to leave the capture
            status, graph = driver.cuStreamEndCapture(self._stream)
        try:
            if problem:
                raise Refused(problem)
            _checked("end", (status,))
            self._executable = _checked("instantiate", driver.cuGraphInstantiate(graph, 0))
        finally:
            if not int(status):
                driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Queue it; raises Refused where CUDA fails."""
        _checked("launch", self._driver.cuGraphLaunch(self._executable, self._stream))

    def destroy(self) -> None:
        """Give it back; once."""
        _checked("destroy", self._driver.cuGraphExecDestroy(self._executable))


def _checked(step: str, result: tuple[Any, ...]) -> Any:
    """What a function of cuda-bindings returns beside its status; raises Refused with that, if it is not 0."""
    status, *found = result
    if int(status):
        raise Refused(f"{step}: {getattr(status, 'name', status)}")
    return found[0] if found else None
