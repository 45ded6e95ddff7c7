"""TensorRT and TensorRT-RTX on an NVIDIA GPU. Unverified on hardware: the tests run it on a driver that they bring.

Both libraries have the same interface, so one class drives both. It runs engines that are there already; building one
takes minutes and is ``edge-ravlm engine build``'s. Whatever it lacks, opening says so and ONNX Runtime takes the model.

A session is used by one thread at a time and leaves its stream idle behind. Every set of shapes has an execution
context of its own, whose captured graph stays good; the contexts share their scratch memory and the tensors' buffers.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle
from edge_ravlm.engines import (
    TITLES,
    Found,
    Key,
    compute_capability,
    engine_cache,
    error_log,
    find,
    host_platform,
)
from edge_ravlm.errors import EdgeRavlmError, EngineError, UsageError, installs, needs_extra
from edge_ravlm.files import write_file
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends.cuda import Buffer, Device, Graph, Refused, device
from edge_ravlm.runtime.backends.nvidia import (
    Allocation,
    CudaEngine,
    CudaStream,
    ExecutionContext,
    GraphDriver,
    RuntimeCache,
    TensorRT,
)

MOST_LANES = 8
"""Sets of shapes that a session keeps ready; of more, the one used least recently goes."""

Shapes = tuple[tuple[int, ...], ...]
"""Of an engine's inputs, in its own order."""

_log = logging.getLogger(__name__)


class TensorRtSession:
    """One model in TensorRT or TensorRT-RTX."""

    name = "tensorrt"

    def __init__(self, engine: _Execution, device: Device, file: str, title: str) -> None:
        self._engine: _Execution | None = engine
        self._device, self._file, self._title = device, file, title
        self._lock = threading.Lock()

    @classmethod
    def open(cls, model: bytes, spec: Model, _threads: int, bundle: Bundle | None = None) -> TensorRtSession:
        """See ``Backend.open``; the engine comes from the bundle or from the user's cache of engines."""
        flavor, library, found = _ready(model, spec, bundle)
        title = f"{TITLES[flavor]} {library.__version__}"
        try:
            with needs_extra(flavor.replace("_", "-")):
                gpu = device()
            with gpu.current():
                engine = _Execution(gpu, flavor, library, found)
        except EdgeRavlmError:
            raise
        except Exception as error:
            raise _broken(spec.file, title, "open", error) from error.with_traceback(None)
        _log.info("model '%s': %s in %s", spec.file, found.reason, title)
        return cls(engine, gpu, spec.file, title)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """See ``Session.run``.

        Raises:
            UsageError: it is closed, or a feed or output is not the engine's: name, type, or a shape out of its range.
            EngineError: the GPU or the library failed.
        """
        with self._lock:
            engine = self._engine
            if engine is None:
                raise UsageError("model", expected="an open one", got="a closed one", do="load the bundle again")
            try:
                with self._device.current():
                    return engine.run(feeds, outputs)
            except EdgeRavlmError:
                raise
            except Exception as error:
                raise _broken(self._file, self._title, "run", error) from error.with_traceback(None)

    def close(self) -> None:
        """See ``Session.close``; waits for a run in another thread."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is None:
                return
            try:
                with self._device.current():
                    engine.release()
            except Exception as error:  # a GPU that failed cannot be tidied up either, and nothing depends on it
                _log.warning("model '%s': %s did not let go of it: %s", self._file, self._title, str(error))


@dataclass
class _Tensor:
    """An input or output: its NumPy type, its buffer, and of an input the range of its shapes."""

    dtype: np.dtype[Any]
    buffer: Buffer
    least: tuple[int, ...] = ()
    most: tuple[int, ...] = ()


@dataclass
class _Lane:
    """An execution context, what it is set to, and its captured run.

    Attributes:
        shapes: of the inputs; None before they are set.
        results: shapes of the outputs by name.
        warm: whether it has run with these shapes; a first run may not be captured, since it sets things up.
    """

    context: ExecutionContext
    shapes: Shapes | None = None
    results: dict[str, tuple[int, ...]] = field(default_factory=dict)
    graph: Graph | None = None
    warm: bool = False

    def release(self) -> None:
        """Give back the graph, then the context, also where somebody holds on to the lane (a traceback does)."""
        graph, self.graph = self.graph, None
        try:
            if graph is not None:
                graph.destroy()
        finally:
            del self.context


class _Execution:
    """An engine, its memory and its stream, for one thread at a time in which the device's context is current."""

    def __init__(self, device: Device, flavor: str, library: TensorRT, found: Found) -> None:
        self._device, self._library = device, library
        self._found = replace(found, plan=b"")  # its megabytes are on the device soon
        self._inputs: dict[str, _Tensor] = {}
        self._outputs: dict[str, _Tensor] = {}
        self._lanes: dict[Shapes | None, _Lane] = {}
        self._scratch: Allocation | None = None
        self._cache: RuntimeCache | None = None
        self._log = error_log(library)
        self._graphs = _graph_driver() if flavor == "tensorrt" else None  # TensorRT-RTX captures by itself
        with ExitStack() as undo:
            undo.callback(self.release)
            self._stream: CudaStream = device.driver.Stream()
            self._runtime = library.Runtime(self._log)
            self._open_engine(found.plan)
            self._how = self._strategy() if flavor == "tensorrt" else self._config()
            self._allocate()
            undo.pop_all()

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        """See ``TensorRtSession.run``; nothing is queued any more when it returns or raises."""
        shapes = self._check(feeds, outputs)
        lane = self._lane(shapes)
        wanted = [(self._outputs[name], lane.results[name]) for name in outputs]
        try:
            for (name, tensor), shape in zip(self._inputs.items(), shapes, strict=True):
                tensor.buffer.array(shape, tensor.dtype)[...] = feeds[name]
                tensor.buffer.upload(feeds[name].nbytes, self._stream)
            self._start(lane)
            for tensor, shape in wanted:
                tensor.buffer.download(int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize, self._stream)
            self._stream.synchronize()
        except BaseException:
            self._drain()  # what was queued must not touch the buffers of the next run
            raise
        return [tensor.buffer.array(shape, tensor.dtype).copy() for tensor, shape in wanted]

    def release(self) -> None:
        """Give everything back, users before what they use, each once and whatever else fails; for the last time."""
        tensors = (*self._inputs.values(), *self._outputs.values())
        with ExitStack() as steps:  # from the last line to the first
            steps.callback(vars(self).pop, "_stream", None)
            for tensor in tensors:
                steps.callback(tensor.buffer.free)
            if self._scratch is not None:
                steps.callback(self._scratch.free)
            for name in ("_runtime", "_engine", "_how", "_cache"):
                steps.callback(vars(self).pop, name, None)
            for lane in self._lanes.values():
                steps.callback(lane.release)
            steps.callback(self._keep_cache)
            steps.callback(self._drain)

    def _drain(self) -> None:
        """Wait for whatever is queued; a stream that failed has nothing to wait for."""
        with suppress(Exception):
            self._stream.synchronize()

    # -- opening --------------------------------------------------------------------------------------------------

    def _open_engine(self, plan: bytes) -> None:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failure("it does not take the engine")
        self._engine: CudaEngine = engine

    def _strategy(self) -> object:
        """TensorRT: one scratch memory for all contexts, since only one of them runs at a time."""
        size = self._engine.device_memory_size_v2
        if size > 0:
            self._scratch = self._device.driver.mem_alloc(size)
        return self._library.ExecutionContextAllocationStrategy.USER_MANAGED

    def _config(self) -> object:
        """TensorRT-RTX: graphs of its own, and the kernels that it compiled for this GPU before."""
        config = self._engine.create_runtime_config()
        strategies = getattr(self._library, "CudaGraphStrategy", None)
        if strategies is not None and hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        if hasattr(config, "create_runtime_cache"):
            self._cache = config.create_runtime_cache()
            with suppress(OSError):  # the first run is slower, and that is all
                self._cache.deserialize(self._cache_path().read_bytes())
            config.set_runtime_cache(self._cache)
        return config

    def _allocate(self) -> None:
        """Buffers for the largest shapes, found out with the first lane."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        kinds = {name: np.dtype(self._library.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        mode = self._library.TensorIOMode.INPUT
        for name in (name for name in names if self._engine.get_tensor_mode(name) == mode):
            least, most = self._range(name)
            size = int(np.prod(most, dtype=np.int64)) * kinds[name].itemsize
            self._inputs[name] = _Tensor(kinds[name], Buffer(self._device, max(1, size)), least, most)
        shapes = tuple(tensor.most for tensor in self._inputs.values())
        lane = self._lanes[self._key(shapes)] = self._open_lane()
        self._shape(lane, shapes, {})
        for name in (name for name in names if name not in self._inputs):
            size = lane.context.get_max_output_size(name)
            if size < 0:
                raise self._failure(f"output '{name}' has no largest size")
            self._outputs[name] = _Tensor(kinds[name], Buffer(self._device, max(1, size)))
        lane.shapes = None  # its outputs have no addresses yet

    def _range(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The least and the largest shape of an input."""
        shape = tuple(self._engine.get_tensor_shape(name))
        if min(shape, default=0) >= 0:
            return shape, shape
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(least), tuple(most)

    # -- running --------------------------------------------------------------------------------------------------

    def _check(self, feeds: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> Shapes:
        """The shapes of the feeds; raises UsageError where something is not the engine's."""
        if feeds.keys() != self._inputs.keys():
            raise _unfit("inputs", " and ".join(self._inputs), " and ".join(feeds) or "none", "feed exactly these")
        for name in outputs:
            if name not in self._outputs:
                raise _unfit("output", f"one of {', '.join(self._outputs)}", name, "ask for one that there is")
        for name, tensor in self._inputs.items():
            feed, least, most = feeds[name], tensor.least, tensor.most
            if feed.dtype != tensor.dtype:
                raise _unfit(f"input '{name}'", str(tensor.dtype), str(feed.dtype), "convert it")
            fits = len(feed.shape) == len(most) and all(
                low <= side <= high for low, side, high in zip(least, feed.shape, most, strict=True)
            )
            if not fits:
                expected = f"shape {list(most)}" if least == most else f"shapes from {list(least)} to {list(most)}"
                do = "feed less at once, or build the engine again with another --max-batch"
                raise _unfit(f"input '{name}'", expected, str(list(feed.shape)), do)
        return tuple(feeds[name].shape for name in self._inputs)

    def _key(self, shapes: Shapes) -> Shapes | None:
        """Without graphs of ours one lane does for all shapes."""
        return shapes if self._graphs is not None else None

    def _lane(self, shapes: Shapes) -> _Lane:
        """The lane set to these shapes, opened if need be."""
        key = self._key(shapes)
        lane = self._lanes.pop(key, None)
        if lane is None:
            while len(self._lanes) >= MOST_LANES:
                self._lanes.pop(next(iter(self._lanes))).release()
            lane = self._open_lane()
        self._lanes[key] = lane  # the last in line to go
        if lane.shapes != shapes:
            self._shape(lane, shapes, self._outputs)
        return lane

    def _open_lane(self) -> _Lane:
        context = self._engine.create_execution_context(self._how)
        if context is None:
            raise self._failure("it has no execution context to give")
        if self._scratch is not None:
            context.set_device_memory(int(self._scratch), self._engine.device_memory_size_v2)
        return _Lane(context)

    def _shape(self, lane: _Lane, shapes: Shapes, outputs: Mapping[str, _Tensor]) -> None:
        """Set a lane to shapes, and tell it where its tensors lie."""
        lane.shapes, lane.warm = None, False
        for name, shape in zip(self._inputs, shapes, strict=True):
            self._must(lane.context.set_input_shape(name, shape), f"it does not take '{name}' as {list(shape)}")
        for name in outputs:
            lane.results[name] = tuple(lane.context.get_tensor_shape(name))
            if min(lane.results[name], default=0) < 0:
                raise self._failure(f"the shape of '{name}' depends on more than those of the inputs")
        for name, tensor in (*self._inputs.items(), *outputs.items()):
            done = lane.context.set_tensor_address(name, tensor.buffer.address)
            self._must(done, f"it does not take the memory of '{name}'")
        lane.shapes = shapes

    def _start(self, lane: _Lane) -> None:
        """Queue the run; from the second time on as a graph, if CUDA and the library allow it."""
        if lane.graph is None and lane.warm and self._graphs is not None:
            try:
                lane.graph = Graph(self._graphs, self._stream, lambda: self._queue(lane))
            except Refused as refusal:
                _log.info("%s: without CUDA graphs; %s", self._found.reason, str(refusal))
                self._graphs = None
                for other in self._lanes.values():
                    if other is not lane:
                        other.release()
                self._lanes = {None: lane}
        if lane.graph is not None:
            lane.graph.launch()
        else:
            self._must(self._queue(lane), "it does not start")
        lane.warm = True

    def _queue(self, lane: _Lane) -> bool:
        return lane.context.execute_async_v3(self._stream.handle)

    def _must(self, done: bool, otherwise: str) -> None:
        if not done:
            raise self._failure(otherwise)

    def _failure(self, problem: str) -> RuntimeError:
        """What went wrong, with what the library says of it."""
        said = " ".join(" ".join(self._log.errors[-3:]).split())
        self._log.errors.clear()
        return RuntimeError(f"{problem} ({said})" if said else problem)

    # -- the cache of TensorRT-RTX --------------------------------------------------------------------------------

    def _cache_path(self) -> Path:
        """Beside the engines: kernels are compiled on first use, for this very GPU."""
        assert self._found.engine is not None
        return engine_cache() / f"{PurePosixPath(self._found.engine.file).stem}.{compute_capability()}.kernels"

    def _keep_cache(self) -> None:
        if self._cache is None:
            return
        kernels, path = bytes(self._cache.serialize()), self._cache_path()
        with suppress(OSError):
            if not path.is_file() or path.read_bytes() != kernels:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, kernels)


def _ready(model: bytes, spec: Model, bundle: Bundle | None) -> tuple[str, TensorRT, Found]:
    """The library and the engine to run a model with here; raises EngineError with all that is missing."""
    capability = compute_capability()
    if capability is None:
        raise EngineError(
            f"model '{spec.file}'",
            expected="an NVIDIA GPU with its driver",
            got="none",
            do="see to the driver, or export the bundle for this machine's processor",
        )
    sha256, tried, installed = hashlib.sha256(model).hexdigest(), [], False
    for flavor, title in TITLES.items():
        try:
            library = cast(TensorRT, import_module(flavor))
            version = str(library.__version__)
        except (ImportError, OSError, AttributeError) as error:  # OSError: it does not find its own libraries
            tried.append(f"{title}: {error}")
            continue
        installed = True
        found = find(Key(flavor, version, capability, host_platform(), sha256), bundle, [engine_cache()])
        if found.engine is not None:
            return flavor, library, found
        tried.append(f"{title} {version}: {found.reason}")
    build = "run `edge-ravlm engine build BUNDLE --target TARGET` for this device"
    raise EngineError(
        f"model '{spec.file}'",
        expected=f"TensorRT and an engine for compute capability {capability}",
        got="; ".join(tried),
        do=build if installed else f"{installs('tensorrt')}, then {build}",
    )


def _graph_driver() -> GraphDriver | None:
    try:
        return cast(GraphDriver, import_module("cuda.bindings.driver"))
    except (ImportError, OSError) as error:
        _log.info("without CUDA graphs: %s", error)
        return None


def _broken(file: str, title: str, what: str, error: Exception) -> EngineError:
    """What NVIDIA's libraries raised, in one sentence, to be raised from that error without its traceback.

    Nor may the log get the exception: frames hold streams, and PyCUDA gives a stream back when nobody holds it any
    more, which has to be while the context is current.
    """
    return EngineError(
        f"model '{file}'",
        expected=f"{title} to {what} it",
        got=" ".join(str(error).split()) or type(error).__name__,
        do="close other programs that use the GPU, or run `edge-ravlm engine build` again",
    )


def _unfit(what: str, expected: str, got: str, do: str) -> UsageError:
    return UsageError(what, expected=expected, got=got, do=do)
