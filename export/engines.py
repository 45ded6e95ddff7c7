"""TensorRT engines from a bundle's ONNX files.

TensorRT-RTX builds for any RTX GPU ahead of time, on a machine that has none (x86-64 only). TensorRT builds for the
very GPU that it runs on, so on a Jetson the command runs on the device; that half is unverified on hardware. Both
libraries have the same interface, and the same code drives both.
"""

from __future__ import annotations

import gc
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_ravlm.engines import (
    TITLES,
    compute_capability,
    engine_cache,
    engine_name,
    error_log,
    host_platform,
)
from edge_ravlm.errors import EngineError, UsageError, needs_extra
from edge_ravlm.files import write_file
from edge_ravlm.manifest import Engine, TensorInfo
from edge_ravlm.targets import Target

if TYPE_CHECKING:
    import tensorrt as trt

Progress = Callable[[str, int, int], object]
"""Called with the phase a build is in, its steps done, and its steps in all."""

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "engines"}
"""What to install to build with each."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""TensorRT's names for what NumPy calls otherwise; the rest differ in case only."""

_MEMORY = re.compile(r"out.?of.?memory|insufficient memory|bad_alloc", re.IGNORECASE)
_NO_GPU = "CUDA driver version is insufficient"
_WORKSPACE_SHARE = 0.25
"""Of the target's memory: what a single layer may use as scratch. Frames, weights and the index need the rest."""


@dataclass(frozen=True)
class Batch:
    """What a run may take, and what the engine is tuned for.

    Attributes:
        least, best, most: pictures.
        sides: of the smallest and of the largest pictures in pixels, for a model that takes any; it is tuned for the
            largest.
    """

    least: int = 1
    best: int = 1
    most: int = 8
    sides: tuple[int, int] | None = None

    def ranges(self, shape: Sequence[int]) -> list[tuple[int, ...]] | None:
        """The least, best and largest shape of an input, -1 where it is dynamic; None if that is not provided for."""
        counts = (self.least, self.best, self.most)
        first, *rest = shape
        small, large = self.sides if self.sides is not None else (-1, -1)
        sides = (small, large, large)
        found = [
            (count if first < 0 else first, *(side if length < 0 else length for length in rest))
            for count, side in zip(counts, sides, strict=True)
        ]
        return None if min(min(shape) for shape in found) < 0 else found


def build(
    model: bytes,
    model_path: str,
    target: Target,
    *,
    batch: Batch = Batch(),
    progress: Progress = lambda *_: None,
) -> list[tuple[Engine, bytes]]:
    """All engines of a model for a target; see ``builds``."""
    return list(builds(model, model_path, target, batch=batch, progress=progress))


def builds(
    model: bytes,
    model_path: str,
    target: Target,
    *,
    batch: Batch = Batch(),
    progress: Progress = lambda *_: None,
) -> Iterator[tuple[Engine, bytes]]:
    """Build one engine after the other.

    The inputs and outputs in an entry are the engine's own where its GPU is at hand. Ahead of time nothing can open an
    engine, so there they are those of the network that the library built it from.

    Args:
        model: the ONNX file.
        model_path: its path in the bundle.
        target: for which device.
        batch: the range of the inputs' dynamic sides.
        progress: called often.

    Yields:
        The manifest's entry, its file under ``engines/``, and the engine's bytes.

    Raises:
        EngineError: an operator that the library lacks, or no memory or GPU to build with.
        UsageError: a target without engines, or another GPU than the target's.
        MissingExtra: the library is not installed.
    """
    library = Library(target)
    sha256 = hashlib.sha256(model).hexdigest()
    for capabilities in library.groups():
        start = time.perf_counter()
        plan, io = library.build(model, model_path, capabilities, batch, progress)
        seconds = round(time.perf_counter() - start, 3)
        name = engine_name(model_path, sha256, target.engine, library.version, capabilities, host_platform())
        yield (
            Engine(
                file=f"engines/{name}.engine",
                model=model_path,
                model_sha256=sha256,
                flavor=library.flavor,
                library_version=library.version,
                compute_capabilities=capabilities,
                platform=host_platform(),
                seconds=seconds,
                io=io,
            ),
            plan,
        )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile.

    The library writes to its log, which is Python's, with a lock of its own held. A collection that began there found a
    builder of before, whose end takes the same lock, and never ended.
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Library:
    """TensorRT or TensorRT-RTX, as a target needs it."""

    def __init__(self, target: Target) -> None:
        if not target.engine:
            raise UsageError(
                f"target '{target.name}'",
                expected="one whose GPU runs engines, such as rtx-40",
                got="one that runs ONNX Runtime on its processor",
                do="use the bundle as it is",
            )
        self.flavor, self._target = target.engine, target
        with needs_extra(EXTRAS[target.engine]):
            self._trt: Any = import_module(target.engine)
        self.version = str(self._trt.__version__)
        self.title = f"{TITLES[target.engine]} {self.version}"

    def groups(self) -> list[tuple[str, ...]]:
        """The compute capabilities that share an engine.

        TensorRT-RTX makes one for all GPUs from Ampere on; NVIDIA advises to build for Turing apart, since a shared
        engine is slower and larger for all.
        """
        if self.flavor == "tensorrt":
            self._check_device()
            return [(self._target.compute_capability,)]
        wanted = self._target.engine_compute_capabilities
        turing = tuple(c for c in wanted if int(c.partition(".")[0]) < 8)
        return [group for group in (turing, tuple(c for c in wanted if c not in turing)) if group]

    @_uncollected()
    def build(
        self, model: bytes, what: str, capabilities: tuple[str, ...], batch: Batch, progress: Progress
    ) -> tuple[bytes, tuple[TensorInfo, ...]]:
        """One engine's bytes, and its inputs and outputs.

        Args:
            model: the ONNX file.
            what: its path, for messages.
            capabilities: of the GPUs that it is for.
            batch: see ``builds``.
            progress: see ``builds``.
        """
        log = error_log(self._trt)
        try:
            builder: trt.Builder = self._trt.Builder(log)
        except TypeError:  # what a null pointer becomes
            raise self._failed(what, log.errors) from None
        network = self._network(builder, log, model, what)
        config = builder.create_builder_config()
        if self._target.memory_mb:
            workspace = int(self._target.memory_mb * 1e6 * _WORKSPACE_SHARE)
            config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, workspace)
        config.add_optimization_profile(self._profile(builder, network, what, batch))
        monitor = _monitor(self._trt, progress)
        config.progress_monitor = monitor
        with self._aimed(config, capabilities):
            plan = builder.build_serialized_network(network, config)
        if monitor.stopped_by is not None:
            raise monitor.stopped_by
        if plan is None:
            raise self._failed(what, log.errors)
        data = bytes(plan)
        return data, self._inspect(data) or _network_io(network)

    def _check_device(self) -> None:
        """TensorRT builds for the GPU at hand, whatever is asked for."""
        wanted, found = self._target.compute_capability, compute_capability()
        if found != wanted:
            raise UsageError(
                f"target '{self._target.name}'",
                expected=f"a GPU of compute capability {wanted} at hand, since TensorRT builds for the one it runs on",
                got=f"one of {found}" if found else "none",
                do="run `edge-ravlm engine build` on the device",
            )

    def _network(self, builder: trt.Builder, log: Any, model: bytes, what: str) -> trt.INetworkDefinition:
        """The model as the library understands it, every tensor of the type that the model says."""
        flag = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(flag))
        parser: trt.OnnxParser = self._trt.OnnxParser(network, log)
        if parser.parse(model):
            return network
        raise self._refused(parser.get_error(0), what)

    def _refused(self, error: trt.ParserError, what: str) -> EngineError:
        operator, name, reason = error.node_operator(), error.node_name(), _told(error.desc())
        if not operator:
            return EngineError(f"model '{what}'", expected="an ONNX file", got=reason, do="export the bundle again")
        if reason == "false":  # all that the parser says of an operator that it does not know
            reason = error.code().name.lower().replace("_", " ")
        return EngineError(
            f"model '{what}'",
            expected=f"operators that {self.title} has",
            got=f"{operator} at node '{name}': {reason}" if name else f"{operator}: {reason}",
            do=f"replace that operator, or choose another target than {self._target.name}",
        )

    def _profile(
        self, builder: trt.Builder, network: trt.INetworkDefinition, what: str, batch: Batch
    ) -> trt.IOptimizationProfile:
        """The range of the inputs' sides, where they are dynamic."""
        profile = builder.create_optimization_profile()
        for info in _network_io(network):
            if info.mode != "input" or min(info.shape, default=1) >= 0:
                continue
            ranges = batch.ranges(info.shape)
            if ranges is None:
                raise EngineError(
                    f"model '{what}'",
                    expected="inputs whose first side alone is dynamic",
                    got=f"'{info.name}' of shape {list(info.shape)}",
                    do="export it with a fixed size",
                )
            profile.set_shape(info.name, *ranges)
        return profile

    @contextmanager
    def _aimed(self, config: trt.IBuilderConfig, capabilities: tuple[str, ...]) -> Iterator[None]:
        """Tell the builder what it builds for; on the device, let it keep what it learns about kernels' speed."""
        if self.flavor == "tensorrt":
            path = engine_cache() / f"timing.{self.version}.sm{capabilities[0].replace('.', '')}.cache"
            known = path.read_bytes() if path.is_file() else b""
            # A cache of another library or GPU is refused: then this build starts one.
            config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
            yield
            self._keep_timings(config, path)
            return
        config.num_compute_capabilities = len(capabilities)
        chips = self._trt.ComputeCapability
        for index, capability in enumerate(capabilities):
            chip = getattr(chips, f"SM{capability.replace('.', '')}", None)
            if chip is None:
                raise EngineError(
                    f"target '{self._target.name}'",
                    expected=f"compute capabilities that {self.title} builds for",
                    got=capability,
                    do="install a newer tensorrt-rtx",
                )
            config.set_compute_capability(chip, index)
        yield

    def _keep_timings(self, config: trt.IBuilderConfig, path: Path) -> None:
        timings = config.get_timing_cache()
        if timings is not None:
            with suppress(OSError):  # the next build is slower, and that is all
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, bytes(timings.serialize()))

    def _failed(self, what: str, errors: list[str]) -> EngineError:
        first = next(filter(None, map(_told, errors)), " ".join(errors[:1]) or "no reason given")
        if any(_MEMORY.search(message) for message in errors):
            first, do = f"too little memory: {first}", "close other programs or build on a machine with more memory"
        else:
            do = "check the GPU's driver" if self.flavor == "tensorrt" else "export the bundle again"
        return EngineError(f"engine of '{what}'", expected=f"{self.title} to build it", got=first, do=do)

    def _inspect(self, plan: bytes) -> tuple[TensorInfo, ...]:
        """Inputs and outputs as the engine has them; none where its GPU is not at hand."""
        runtime: trt.Runtime = self._trt.Runtime(error_log(self._trt))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return ()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = {name for name in names if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT}
        return tuple(
            _tensor_info(name, name in inputs, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
            for name in names
        )


def _told(message: str) -> str:
    """What the library says, on one line, but for its remark that there is no GPU, which building does not need."""
    return " ".join(word for line in message.splitlines() if _NO_GPU not in line for word in line.split())


def _network_io(network: trt.INetworkDefinition) -> tuple[TensorInfo, ...]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(
        _tensor_info(tensor.name, place < len(inputs), tensor.dtype, tensor.shape)
        for place, tensor in enumerate(inputs + outputs)
    )


def _tensor_info(name: str, is_input: bool, dtype: trt.DataType, shape: trt.Dims) -> TensorInfo:
    return TensorInfo(
        name=name,
        mode="input" if is_input else "output",
        dtype=_DTYPES.get(dtype.name, dtype.name.lower()),
        shape=tuple(shape),
    )


def _monitor(library: Any, progress: Progress) -> Any:
    """What the library reports to. An exception, Ctrl-C too, must not pass through it: it ends the build instead."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # known at run time only: either library's
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.stopped_by: BaseException | None = None

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                progress(phase, step + 1, self.steps[phase])
            except BaseException as error:
                self.stopped_by = error
            return self.stopped_by is None

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()
