"""A GPU that is none: PyCUDA, cuda-bindings and TensorRT as far as the backend uses them, strict where CUDA is silent.

Streams have a thread each that does what was queued, in order, while the caller goes on. What such work wrote is not
to be seen on the host before the caller waited for the stream: until then the memory holds ``POISON``, and touching it
is a fault. So every mistake in the order of things shows each time, not only when threads happen to race.

Faults: memory of the wrong size, freed, freed twice, or freed or touched while work on it is queued; a call without
the device's context; a tensor without address; a graph, engine, context or stream given back twice, too late, or in
the wrong order. Each is raised and also kept, since the backend may turn an exception into another.

Engines are files ``PLAN``, a profile as JSON, and an ONNX model, which ONNX Runtime runs on the processor.
"""

from __future__ import annotations

import json
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

POISON = 0xA5
PLAN = b"PLAN"
_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
_NUMPY = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}


class Fault(AssertionError):
    """A mistake in the use of CUDA."""


class Gpu:
    """One device, and all that happens to it.

    Args:
        integrated: whether it shares the processor's memory.
        version: of the TensorRT that comes with it.
        fail: name of a call -> how many calls of it succeed before one fails.

    Attributes:
        journal: names of the calls, in order.
        faults: every mistake so far.
        kernels: what runtime caches were loaded with.
        gate: while it is cleared, streams do nothing.
        waiting, faulty: set when somebody waits for a stream, and when the first fault is there.
    """

    def __init__(self, *, integrated: bool = False, version: str = "10.3.0", fail: Mapping[str, int] = {}) -> None:
        self.integrated, self.version, self.fail = integrated, version, dict(fail)
        self.journal: list[str] = []
        self.faults: list[str] = []
        self.kernels: list[bytes] = []
        self.gate, self.waiting, self.faulty = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()  # objects that the garbage collector gives back
        self.held: dict[int, Any] = {}  # objects that are given back by a call
        self.contexts: list[Context] = []
        self.stacks = threading.local()
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self._handles = iter(range(0x10000, 1 << 60, 0x10000))
        self._lock = threading.RLock()

    # -- what the tests ask -------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        """How often a call was made."""
        return self.journal.count(name)

    def check(self) -> None:
        """Nothing was done wrong and nothing is left but the primary context, which is nobody's."""
        found = list(self.faults)
        found += [f"leak: {type(thing).__name__}" for thing in (*self.held.values(), *self.alive)]
        found += [f"the primary context was retained {len(self.contexts)} times"] * (len(self.contexts) > 1)
        found += ["a context is still pushed"] * any(context.pushed for context in self.contexts)
        if found:
            raise Fault("; ".join(found))

    # -- what its parts ask -------------------------------------------------------------------------------------------

    def handle(self) -> int:
        return next(self._handles)

    def fault(self, message: str) -> Fault:
        self.faults.append(message)
        self.faulty.set()
        return Fault(message)

    def call(self, name: str, *, needs_context: bool = True) -> bool:
        """Note a call; False where it was told to fail."""
        with self._lock:
            self.journal.append(name)
            if needs_context and not self.stack():
                raise self.fault(f"{name}: no context is current in this thread")
            if name in self.fail:
                self.fail[name] -= 1
                return self.fail[name] != -1
            return True

    def must(self, name: str, *, needs_context: bool = True) -> None:
        if not self.call(name, needs_context=needs_context):
            raise CudaError(f"{name} failed: an illegal memory access was encountered")

    def stack(self) -> list[Context]:
        if not hasattr(self.stacks, "own"):
            self.stacks.own = []
        found: list[Context] = self.stacks.own
        return found

    def memory(self, address: int, nbytes: int, what: str) -> np.ndarray:
        """The bytes at an address, which have to be there."""
        thing = self.held.get(address)
        if not isinstance(thing, Memory) or not thing.on_device:
            raise self.fault(f"{what}: no memory at {address:#x}, or not any more")
        if nbytes > thing.data.size:
            raise self.fault(f"{what}: {nbytes} bytes in memory of {thing.data.size}")
        return thing.data[:nbytes]


class CudaError(RuntimeError):
    """``pycuda.driver.Error``."""


class Context:
    """The primary context."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.pushed = gpu, 0
        gpu.contexts.append(self)

    def push(self) -> None:
        self._gpu.stack().append(self)
        self.pushed += 1

    def pop(self) -> None:
        if not self._gpu.stack():
            raise self._gpu.fault("pop: no context is current in this thread")
        self._gpu.stack().pop().pushed -= 1


class Memory:
    """An allocation, on the device or pinned on the host, and the work that is queued for it."""

    def __init__(self, gpu: Gpu, nbytes: int, call: str, *, on_device: bool) -> None:
        gpu.must(call)
        if any(stream.recording is not None and stream.thread == threading.get_ident() for stream in _all(gpu)):
            raise gpu.fault(f"{call}: while this thread captures")
        self.gpu, self.on_device, self.address = gpu, on_device, gpu.handle()
        self.data = np.full(nbytes, POISON, np.uint8)
        self.pending: set[int] = set()
        gpu.held[self.address] = self

    def __int__(self) -> int:
        return self.address

    def get_device_pointer(self) -> int:
        if not self.on_device:
            raise CudaError("cuMemHostGetDevicePointer failed: invalid argument")
        return self.address

    def touch(self, what: str) -> None:
        """The host reads or writes it."""
        if self.address not in self.gpu.held:
            raise self.gpu.fault(f"{what}: freed host memory")
        if self.pending:
            raise self.gpu.fault(f"{what}: host memory for which work is queued")

    def free(self) -> None:
        works = self.gpu.call("free")
        if self.address not in self.gpu.held:
            raise self.gpu.fault("free: freed already")
        if self.pending:
            raise self.gpu.fault("free: memory for which work is queued")
        del self.gpu.held[self.address]
        self.data[:] = POISON
        if not works:
            raise CudaError("cuMemFree failed: an illegal memory access was encountered")


class PinnedArray(np.ndarray):
    """Pinned memory as NumPy sees it; whoever looks into it is asked whether he may."""

    memory: Memory | None = None

    def __array_finalize__(self, whole: Any) -> None:
        self.memory = getattr(whole, "memory", None)

    @property
    def base(self) -> Any:
        return self.memory

    def _touch(self, what: str) -> None:
        if self.memory is not None:
            self.memory.touch(what)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._touch("write")
        super().__setitem__(key, value)

    def copy(self, order: Any = "C") -> Any:
        self._touch("read")
        return np.array(self.view(np.ndarray), order=order)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        self._touch(ufunc.__name__)
        return getattr(ufunc, method)(*(_plain(value) for value in inputs), **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        self._touch(function.__name__)
        return function(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, PinnedArray) else value


class Stream:
    """A thread that does what is queued, and what it wrote that the host has not waited for."""

    def __init__(self, gpu: Gpu) -> None:
        gpu.must("stream")
        self.gpu, self.handle = gpu, gpu.handle()
        self.recording: list[Callable[[], None]] | None = None
        self.thread = 0
        self.unseen: list[Callable[[], None]] = []
        self.touched: set[Memory] = set()
        self.failure: list[BaseException] = []
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._work, gpu.gate, self.failure), daemon=True).start()
        gpu.alive.add(self)
        gpu.streams[self.handle] = self

    def queue(self, work: Callable[[], None], memories: Sequence[Memory]) -> None:
        """Do it later, or record it."""
        if self.recording is not None:
            itself = weakref.proxy(self)  # a graph keeps no stream
            self.recording.append(lambda: itself.queue(work, memories))
            return
        for memory in memories:
            memory.pending.add(self.handle)
            self.touched.add(memory)
        self._work.put(work)

    def synchronize(self) -> None:
        self.gpu.must("synchronize")
        if self.recording is not None:
            raise CudaError("cuStreamSynchronize failed: operation not permitted when stream is capturing")
        done = threading.Event()
        self._work.put(done.set)
        self.gpu.waiting.set()
        done.wait()
        for show in self.unseen:
            show()
        for memory in self.touched:
            memory.pending.discard(self.handle)
        self.unseen, self.touched = [], set()
        if self.failure:
            raise CudaError(str(self.failure.pop()))

    def __del__(self) -> None:
        if hasattr(self, "_work"):
            if self.touched:
                self.gpu.faults.append("stream: given back while work is queued")
            if not self.gpu.stack():
                self.gpu.faults.append("stream: given back without its context")
            self._work.put(None)


def _all(gpu: Gpu) -> list[Stream]:
    return list(gpu.streams.values())


def _serve(
    work: queue.SimpleQueue[Callable[[], None] | None], gate: threading.Event, failure: list[BaseException]
) -> None:
    while (task := work.get()) is not None:
        gate.wait()
        try:
            task()
        except BaseException as error:
            failure.append(error)
        del task


# -- pycuda.driver ----------------------------------------------------------------------------------------------------


def pycuda_driver(gpu: Gpu) -> ModuleType:
    """The module."""
    module = ModuleType("pycuda.driver")

    class Device:
        def __init__(self, number: int) -> None:
            gpu.must("device", needs_context=False)
            assert number == 0

        def get_attribute(self, attribute: str) -> int:
            return int(gpu.integrated and attribute == "INTEGRATED")

        def retain_primary_context(self) -> Context:
            return Context(gpu)

    def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> PinnedArray:
        memory = Memory(gpu, shape * np.dtype(dtype).itemsize, "pagelocked_empty", on_device=bool(mem_flags & 2))
        found = memory.data.view(dtype).view(PinnedArray)
        found.memory = memory
        return found

    def memcpy_htod_async(dest: Memory, src: PinnedArray, stream: Stream) -> None:
        gpu.must("upload")
        (host,) = _pinned(src, "upload")
        gpu.memory(int(dest), src.nbytes, "upload")
        data = src.view(np.ndarray).reshape(-1).view(np.uint8)
        stream.queue(lambda: np.copyto(gpu.memory(int(dest), data.size, "upload"), data), (host, dest))

    def memcpy_dtoh_async(dest: PinnedArray, src: Memory, stream: Stream) -> None:
        gpu.must("download")
        (host,) = _pinned(dest, "download")
        gpu.memory(int(src), dest.nbytes, "download")
        data = dest.view(np.ndarray).reshape(-1).view(np.uint8)

        def work() -> None:
            found = gpu.memory(int(src), data.size, "download").copy()
            data[:] = POISON
            stream.unseen.append(lambda: np.copyto(data, found))

        stream.queue(work, (host, src))

    def _pinned(array: PinnedArray, what: str) -> tuple[Memory]:
        if not isinstance(array, PinnedArray) or array.memory is None:
            raise gpu.fault(f"{what}: host memory that is not pinned")
        if array.memory.address not in gpu.held:
            raise gpu.fault(f"{what}: freed host memory")
        return (array.memory,)

    vars(module).update(
        init=lambda: None,
        Device=Device,
        Stream=lambda: Stream(gpu),
        mem_alloc=lambda nbytes: Memory(gpu, nbytes, "mem_alloc", on_device=True),
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
        device_attribute=SimpleNamespace(INTEGRATED="INTEGRATED"),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
        Error=CudaError,
    )
    return module


# -- cuda.bindings.driver ---------------------------------------------------------------------------------------------


class Result(IntEnum):
    """``CUresult``."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class Recorded:
    """A graph, or what is instantiated from one."""

    def __init__(self, gpu: Gpu, work: list[Callable[[], None]]) -> None:
        self.work, self.address = work, gpu.handle()
        gpu.held[self.address] = self


def cuda_bindings_driver(gpu: Gpu) -> ModuleType:
    """The module."""
    module = ModuleType("cuda.bindings.driver")

    def begin(stream: Stream, mode: str) -> tuple[Result]:
        if not gpu.call("begin_capture"):
            return (Result.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        assert mode == "thread-local"
        stream.recording, stream.thread = [], threading.get_ident()
        return (Result.CUDA_SUCCESS,)

    def end(stream: Stream) -> tuple[Result, Recorded | None]:
        work, stream.recording = stream.recording, None
        if not gpu.call("end_capture") or work is None:
            return Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return Result.CUDA_SUCCESS, Recorded(gpu, work)

    def instantiate(graph: Recorded, flags: int) -> tuple[Result, Recorded | None]:
        if not gpu.call("instantiate") or flags:
            return Result.CUDA_ERROR_INVALID_VALUE, None
        return Result.CUDA_SUCCESS, Recorded(gpu, graph.work)

    def launch(graph: Recorded, stream: Stream) -> tuple[Result]:
        if not gpu.call("launch"):
            return (Result.CUDA_ERROR_INVALID_VALUE,)
        if graph.address not in gpu.held:
            raise gpu.fault("launch: a graph that was given back")
        for work in graph.work:
            work()
        return (Result.CUDA_SUCCESS,)

    def destroy(graph: Recorded) -> tuple[Result]:
        gpu.call("destroy_graph")
        if gpu.held.pop(graph.address, None) is None:
            raise gpu.fault("destroy: a graph that was given back already")
        return (Result.CUDA_SUCCESS,)

    vars(module).update(
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local"),
        CUstream=lambda handle: weakref.proxy(gpu.streams[handle]),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiate=instantiate,
        cuGraphLaunch=launch,
        cuGraphExecDestroy=destroy,
        cuGraphDestroy=destroy,
    )
    return module


# -- tensorrt and tensorrt_rtx ----------------------------------------------------------------------------------------


def plan(model: bytes, profile: Mapping[str, Sequence[Sequence[int]]]) -> bytes:
    """An engine's file: least, best and largest shape of each dynamic input."""
    return PLAN + json.dumps(profile).encode() + b"\0" + model


class _Given:
    """What the garbage collector gives back: it may only do so with the context there, and after all that use it."""

    name = ""

    def __init__(self, gpu: Gpu, uses: _Given | None = None) -> None:
        self.gpu, self._uses = gpu, None if uses is None else weakref.ref(uses)
        gpu.alive.add(self)

    def __del__(self) -> None:
        self.gpu.journal.append(f"drop {self.name}")
        if not self.gpu.stack():
            self.gpu.faults.append(f"{self.name}: given back without its context")
        if self._uses is not None and self._uses() is None:
            self.gpu.faults.append(f"{self.name}: given back after what it needs")


class EngineRuntime(_Given):
    name = "runtime"

    def __init__(self, gpu: Gpu, logger: Any, module: ModuleType) -> None:
        super().__init__(gpu)
        self._logger, self._module = logger, module

    def deserialize_cuda_engine(self, serialized: bytes) -> Engine | None:
        if not self.gpu.call("deserialize") or not serialized.startswith(PLAN):
            self._logger.log(1, "magicTag does not match")
            return None
        return Engine(self.gpu, self, serialized)


class Engine(_Given):
    name = "engine"

    def __init__(self, gpu: Gpu, runtime: EngineRuntime, serialized: bytes) -> None:
        super().__init__(gpu, runtime)
        head, _, model = serialized[len(PLAN) :].partition(b"\0")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.profile = {name: [tuple(shape) for shape in shapes] for name, shapes in json.loads(head).items()}
        self.inputs = {info.name: info for info in self.session.get_inputs()}
        self.outputs = {info.name: info for info in self.session.get_outputs()}
        self.both = {**self.inputs, **self.outputs}
        self.num_io_tensors, self.device_memory_size_v2 = len(self.both), 4096

    def get_tensor_name(self, index: int) -> str:
        return list(self.both)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return _TYPES[self.both[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(side if isinstance(side, int) else -1 for side in self.both[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return self.profile[name]

    def create_execution_context(self, how: Any, /) -> ExecutionContext | None:
        return ExecutionContext(self.gpu, self, how) if self.gpu.call("create_execution_context") else None

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.gpu, self)


class RuntimeConfig(_Given):
    name = "runtime config"
    cuda_graph_strategy = "disabled"

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache(_Given):
    name = "runtime cache"
    blob = b""

    def deserialize(self, blob: bytes) -> bool:
        self.gpu.kernels.append(blob)
        if not blob.startswith(b"kernels"):
            return False
        self.blob = blob
        return True

    def serialize(self) -> bytearray:
        self.gpu.must("serialize")
        return bytearray(self.blob or b"kernels")


class ExecutionContext(_Given):
    name = "execution context"

    def __init__(self, gpu: Gpu, engine: Engine, how: Any) -> None:
        super().__init__(gpu, engine)
        self._engine, self._shapes, self._addresses = weakref.proxy(engine), {}, {}
        self._scratch = 0 if how == "user managed" else None
        gpu.journal.append(f"graphs {getattr(how, 'cuda_graph_strategy', 'none')}")

    def set_device_memory(self, memory: int, size: int) -> None:
        self.gpu.memory(memory, max(size, self._engine.device_memory_size_v2), "scratch")
        self._scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.profile.get(name) or [self._engine.get_tensor_shape(name)] * 3
        inside = len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        if inside and self.gpu.call("set_input_shape"):
            self._shapes[name] = tuple(shape)
            return True
        return False

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._shapes.keys() != self._engine.inputs.keys():
            return (-1,)
        feeds = {key: np.zeros(shape, self._dtype(key)) for key, shape in self._shapes.items()}
        return tuple(self._engine.session.run([name], feeds)[0].shape)

    def get_max_output_size(self, name: str) -> int:
        feeds = {key: self._engine.profile[key][2] for key in self._engine.inputs}
        zeros = {key: np.zeros(shape, self._dtype(key)) for key, shape in feeds.items()}
        return self._engine.session.run([name], zeros)[0].nbytes if self._shapes else -1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if not self.gpu.call("set_tensor_address"):
            return False
        self.gpu.memory(memory, 1, "set_tensor_address")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self.gpu.call("execute"):
            return False
        if self._scratch is not None:
            self.gpu.memory(self._scratch, self._engine.device_memory_size_v2, "execute: scratch")
        missing = self._engine.both.keys() - self._addresses.keys()
        if missing or self._shapes.keys() != self._engine.inputs.keys():
            raise self.gpu.fault(f"execute: no address or shape for {', '.join(sorted(missing)) or 'an input'}")
        stream = weakref.proxy(self.gpu.streams[stream_handle])
        shapes, addresses, engine = dict(self._shapes), dict(self._addresses), self._engine
        gpu, run, outputs = self.gpu, engine.session.run, list(engine.outputs)
        kinds = {name: np.dtype(self._dtype(name)) for name in engine.both}

        def work() -> None:
            feeds = {}
            for name, shape in shapes.items():
                size = int(np.prod(shape)) * kinds[name].itemsize
                feeds[name] = gpu.memory(addresses[name], size, f"input {name}").view(kinds[name]).reshape(shape).copy()
            for name, result in zip(outputs, run(outputs, feeds), strict=True):
                place = gpu.memory(addresses[name], result.nbytes, f"output {name}")
                found = np.ascontiguousarray(result).reshape(-1).view(np.uint8)
                if gpu.integrated:  # the host sees this memory itself
                    place[:] = POISON
                    stream.unseen.append(lambda place=place, found=found: np.copyto(place, found))
                else:
                    place[:] = found

        stream.queue(work, [gpu.held[address] for address in addresses.values()])
        return True

    def _dtype(self, name: str) -> Any:
        return _NUMPY[self._engine.get_tensor_dtype(name)]


def tensorrt(gpu: Gpu, name: str = "tensorrt") -> ModuleType:
    """Either module."""
    module = ModuleType(name)

    class ILogger:
        Severity = SimpleNamespace(ERROR=1)

        def __init__(self) -> None: ...

    vars(module).update(
        __version__=gpu.version,
        ILogger=ILogger,
        Runtime=lambda logger: EngineRuntime(gpu, logger, module),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        nptype=lambda kind: _NUMPY[kind],
    )
    if name == "tensorrt_rtx":
        module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
    return module
