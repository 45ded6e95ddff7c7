"""Whether the GPU that is none would notice: the backend with one mistake at a time, each of which has to show."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_gpu import Fault, Gpu
from small_model import OUTPUTS, SMALL, SPEC, TEXT

from edge_ravlm.runtime.backends import cuda, tensorrt

NUMBERS = "other numbers than those of ONNX Runtime"

MISTAKES = {
    # order
    "upload after the run": (
        tensorrt,
        "                tensor.buffer.upload(feeds[name].nbytes, self._stream)\n            self._start(lane)\n",
        "                pass\n            self._start(lane)\n            for name, tensor in self._inputs.items():\n"
        "                tensor.buffer.upload(feeds[name].nbytes, self._stream)\n",
        NUMBERS,
    ),
    "download before the run": (
        tensorrt,
        "            self._start(lane)\n            for tensor, shape in wanted:\n"
        "                tensor.buffer.download(int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize, "
        "self._stream)\n",
        "            for tensor, shape in wanted:\n"
        "                tensor.buffer.download(int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize, "
        "self._stream)\n            self._start(lane)\n",
        NUMBERS,
    ),
    "no upload": (tensorrt, "tensor.buffer.upload(feeds[name].nbytes, self._stream)", "pass", NUMBERS),
    "no run": (tensorrt, "            self._start(lane)\n", "", NUMBERS),
    "fed after the upload": (
        tensorrt,
        "                tensor.buffer.array(shape, tensor.dtype)[...] = feeds[name]\n"
        "                tensor.buffer.upload(feeds[name].nbytes, self._stream)\n",
        "                tensor.buffer.upload(feeds[name].nbytes, self._stream)\n"
        "                tensor.buffer.array(shape, tensor.dtype)[...] = feeds[name]\n",
        "write: host memory for which work is queued",
    ),
    "no wait for the results": (
        tensorrt,
        "            self._stream.synchronize()\n        except",
        "        except",
        "read: host memory for which work is queued",
    ),
    "no wait after a failure": (
        tensorrt,
        "            self._drain()  # what was queued must not touch the buffers of the next run\n",
        "",
        "host memory for which work is queued",
    ),
    "results that are the buffer": (
        tensorrt, ".copy() for tensor, shape in wanted", " for tensor, shape in wanted", NUMBERS,
    ),
    "a graph for all shapes": (tensorrt, "return shapes if self._graphs is not None else None", "return None", NUMBERS),
    # size
    "too little device memory": (cuda, "mem_alloc(nbytes)", "mem_alloc(nbytes // 2)", "bytes in memory of"),
    "too small an output": (
        tensorrt, "max(1, size)))\n        lane", "max(1, size // 2)))\n        lane", "bytes in memory of",
    ),
    "elements for bytes": (tensorrt, "np.int64)) * tensor.dtype.itemsize, self", "np.int64)), self", NUMBERS),
    "too little scratch": (tensorrt, "driver.mem_alloc(size)", "driver.mem_alloc(size // 2)", "scratch: 4096 bytes in"),
    # address
    "no address for the outputs": (
        tensorrt, "(*self._inputs.items(), *outputs.items())", "self._inputs.items()", "no address",
    ),
    "no scratch": (tensorrt, "context.set_device_memory(", "max(", "scratch: no memory at 0x0"),
    # life
    "use after free": (
        tensorrt,
        "        return [tensor.buffer.array(",
        "        self._scratch.free()\n        return [tensor.buffer.array(",
        "no memory at",
    ),
    "freed twice": (
        cuda,
        "        finally:\n            self._pinned.free()",
        "        finally:\n            self._pinned.free()\n            self._pinned.free()",
        "freed already",
    ),
    "freed while work is queued": (
        tensorrt,
        "            self._start(lane)\n",
        "            self._start(lane)\n            self._scratch.free()\n            tensor.buffer.free()\n",
        "free: memory for which work is queued",
    ),
    "buffers that are kept": (tensorrt, "steps.callback(tensor.buffer.free)", "pass", "leak: Memory"),
    "pinned memory that is kept": (
        cuda, "        finally:\n            self._pinned.free()", "        finally:\n            pass", "leak: Memory",
    ),
    "scratch that is kept": (tensorrt, "steps.callback(self._scratch.free)", "pass", "leak: Memory"),
    "graphs that are kept": (tensorrt, "                graph.destroy()", "                pass", "leak: Recorded"),
    "recordings that are kept": (
        cuda, "                driver.cuGraphDestroy(graph)", "                pass", "leak: Recorded",
    ),
    "lanes that are kept": (tensorrt, "steps.callback(lane.release)", "pass", "execution context: given back"),
    "a stream that is kept": (
        tensorrt, 'steps.callback(vars(self).pop, "_stream", None)', "pass", "stream: given back without",
    ),
    "an engine that is kept": (tensorrt, '"_runtime", "_engine", "_how"', '"_runtime", "_how"', "engine: given back"),
    "a runtime that goes first": (
        tensorrt, '("_runtime", "_engine", "_how", "_cache")', '("_cache", "_how", "_engine", "_runtime")',
        "engine: given back after what it needs",
    ),
    # context
    "no context": (
        cuda,
        "        self._context.push()\n        try:\n            yield\n        finally:\n"
        "            self._context.pop()",
        "        yield", "no context is current in this thread",
    ),
    "a context that stays": (cuda, "            self._context.pop()", "            pass", "a context is still pushed"),
    "no context to close in": (
        tensorrt, "                with self._device.current():\n                    engine.release()",
        "                engine.release()", "no context",
    ),
    "a context for each session": (cuda, "if number not in _devices", "if True", "was retained 2 times"),
}  # fmt: skip
ON_INTEGRATED = {"no wait for the results", "results that are the buffer"}
"""What also has to show where nothing is copied."""


def mistaken(module: ModuleType, right: str, wrong: str, patch: pytest.MonkeyPatch) -> Any:
    """The backend, with other text in one of its two files."""
    for part in (cuda, tensorrt):
        source = inspect.getsource(part)
        if part is module:
            assert source.count(right) == 1, right
            source = source.replace(right, wrong)
        copy = ModuleType(part.__name__)
        patch.setitem(sys.modules, part.__name__, copy)
        exec(compile(source, str(part.__file__), "exec"), vars(copy))
    return copy


def exercise(session_type: Any, gpu: Gpu, pictures: Any, reference: Any) -> str:
    """Use two sessions thoroughly; returns what was wrong, "" if nothing was."""
    wrong: list[str] = []
    try:
        sessions = [session_type.open(SMALL, SPEC, 1) for _ in range(2)]
        for session in sessions:
            kept = []
            for count, side in ((3, 16), (1, 12), (2, 16)):
                for seed in range(3):
                    images = pictures(count, side, seed)
                    kept.append((session.run({"image": images}, OUTPUTS), reference(images)))
            gpu.fail["download"] = 0
            for seed in range(2):
                try:
                    session.run({"image": pictures(3, 16, seed)}, OUTPUTS)
                except Exception as error:  # noqa: PERF203
                    wrong += [str(error)] * isinstance(error, Fault)
            same = all(
                np.array_equal(np.asarray(one), two)
                for found, wanted in kept
                for one, two in zip(found, wanted, strict=True)
            )
            wrong += [NUMBERS] * (not same)
            session.close()
            session.close()
        sessions.clear()
    except Exception as error:
        wrong.append(str(error))
    try:
        gpu.check()
    except Fault as fault:
        wrong.append(str(fault))
    return "; ".join(wrong)


@pytest.fixture
def unchecked(machine: Any, gpus: list[Gpu]) -> Callable[..., Gpu]:
    """machine(), whose faults are the test's own matter."""

    def install(**options: Any) -> Gpu:
        gpu: Gpu = machine(**options)
        gpus.remove(gpu)
        return gpu

    return install


@pytest.mark.parametrize("integrated", [False, True])
def test_the_backend_as_it_is_makes_no_mistake(
    unchecked: Any, pictures: Any, reference: Any, integrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = unchecked(integrated=integrated)
    copy = mistaken(tensorrt, "MOST_LANES = 8", "MOST_LANES = 8", monkeypatch)
    assert exercise(copy.TensorRtSession, gpu, pictures, reference) == ""


@pytest.mark.parametrize(
    ("mistake", "integrated"),
    [*((name, False) for name in MISTAKES), *((name, True) for name in sorted(ON_INTEGRATED))],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_mistake_shows(
    unchecked: Any, pictures: Any, reference: Any, mistake: str, integrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, right, wrong, says = MISTAKES[mistake]
    gpu = unchecked(integrated=integrated)
    copy = mistaken(module, right, wrong, monkeypatch)
    assert says in exercise(copy.TensorRtSession, gpu, pictures, reference)


def test_two_threads_in_one_session_show(unchecked: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu: Gpu = unchecked()
    copy = mistaken(
        tensorrt,
        "        with self._lock:\n            engine = self._engine\n",
        "        if True:\n            engine = self._engine\n",
        monkeypatch,
    )
    session = copy.TensorRtSession.open(SMALL, SPEC, 1)
    gpu.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(session.run, {"image": pictures(1, 16)}, OUTPUTS)
        gpu.waiting.wait()
        pool.submit(session.run, {"image": pictures(1, 16)}, OUTPUTS)
        shown = gpu.faulty.wait(60)
        gpu.gate.set()
    session.close()
    assert shown
    assert gpu.faults[0] == "write: host memory for which work is queued"


@pytest.mark.export
def test_the_small_model_is_what_it_is_said_to_be() -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.parser.parse_model(TEXT)
    weight = np.random.default_rng(0).integers(-9, 10, (4, 3, 3, 3)).astype(np.float32) / 64
    for name, array in (("weight", weight), ("sides", np.array([2, 3]))):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    assert model == onnx.load_model_from_string(SMALL)
