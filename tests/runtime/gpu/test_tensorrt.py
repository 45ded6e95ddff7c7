"""The TensorRT backend on a GPU that is none; what only real hardware can tell is in ``test_hardware.py``."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_gpu
import msgspec
import numpy as np
import pytest
from fake_gpu import Gpu
from numpy.typing import NDArray
from small_model import CAPABILITY, OUTPUTS, PROFILE, SMALL, SPEC, entry

from edge_ravlm.bundle import Bundle, write_bundle
from edge_ravlm.engines import engine_cache, store
from edge_ravlm.errors import EngineError, UsageError
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import Session, open_session, tensorrt
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession
from edge_ravlm.runtime.backends.tensorrt import TensorRtSession

Images = NDArray[np.uint8]
Reference = Callable[[Images], list[NDArray[Any]]]

LIBRARIES = pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])


def opened() -> TensorRtSession:
    return TensorRtSession.open(SMALL, SPEC, 1)


def same(session: Session, images: Images, reference: Reference) -> None:
    for found, wanted in zip(session.run({"image": images}, OUTPUTS), reference(images), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


# -- what comes out ---------------------------------------------------------------------------------------------------


@LIBRARIES
@pytest.mark.parametrize("integrated", [False, True])
def test_numbers_are_those_of_onnx_runtime(
    machine: Any, pictures: Any, reference: Reference, library: str, integrated: bool
) -> None:
    machine(library, integrated=integrated)
    session = opened()
    for seed in range(3):  # the first run of a shape, the one that is captured, one that is launched
        for count in (1, 2, 3):
            for side in (12, 14, 16):
                same(session, pictures(count, side, seed), reference)
    session.close()


def test_outputs_come_as_asked_for_and_no_other_is_copied(machine: Any, pictures: Any, reference: Reference) -> None:
    gpu, images = machine(), pictures(2, 16)
    session = opened()
    grid, embedding = session.run({"image": images}, ("grid", "embedding"))
    before = gpu.count("download")
    (alone,) = session.run({"image": images}, ("embedding",))
    assert gpu.count("download") - before == 1
    for found, wanted in zip((embedding, grid, alone), (*reference(images), reference(images)[0]), strict=True):
        np.testing.assert_array_equal(found, wanted)
    session.close()


def test_results_are_the_callers_own(machine: Any, pictures: Any, reference: Reference) -> None:
    machine()
    session, images = opened(), pictures(1, 16)
    first, _ = session.run({"image": images}, OUTPUTS)
    session.run({"image": pictures(1, 16, 1)}, OUTPUTS)
    np.testing.assert_array_equal(first, reference(images)[0])
    first[:] = 0
    same(session, images, reference)
    session.close()


def test_a_picture_that_does_not_lie_in_one_piece_is_fine(machine: Any, pictures: Any, reference: Reference) -> None:
    machine()
    session, images = opened(), pictures(2, 16)[:, ::-1, ::-1]
    same(session, images, reference)
    session.close()


def test_several_threads_and_two_sessions_at_once(machine: Any, pictures: Any, reference: Reference) -> None:
    gpu = machine()
    sessions = [opened(), opened()]
    jobs = [(sessions[seed % 2], pictures(1 + seed % 3, (12, 16)[seed % 2], seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: same(*job, reference), jobs))
        list(pool.map(lambda session: session.close(), sessions))
    assert len(gpu.contexts) == 1


def test_closing_waits_for_the_run_of_another_thread(machine: Any, pictures: Any) -> None:
    machine()
    session = opened()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(session.run, {"image": pictures(3, 16)}, OUTPUTS) for _ in range(8)]
        pool.submit(session.close).result()
    for job in running:
        assert job.exception() is None or "closed" in str(job.exception())


# -- graphs -----------------------------------------------------------------------------------------------------------


def test_each_shape_is_captured_once_and_then_launched(machine: Any, pictures: Any) -> None:
    gpu, session = machine(), opened()
    for seed in range(4):
        for side in (12, 16):
            session.run({"image": pictures(1, side, seed)}, OUTPUTS)
    assert gpu.count("begin_capture") == gpu.count("instantiate") == 2
    assert gpu.count("execute") == 4  # once to warm up and once to capture, for each
    assert gpu.count("launch") == 6
    session.close()


@pytest.mark.parametrize("refuses", ["begin_capture", "end_capture", "instantiate", "execute", "nothing installed"])
def test_without_graphs_it_runs_all_the_same(
    machine: Any, pictures: Any, reference: Reference, refuses: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    gpu = machine(fail={refuses: 2 if refuses == "execute" else 0})
    if refuses == "nothing installed":
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with caplog.at_level(logging.INFO):
        session = opened()
        for count in (1, 2):  # the second shape is there, but not captured, when the first one's capture fails
            same(session, pictures(count, 16), reference)
        for seed in range(4):
            same(session, pictures(1 + seed % 2, 16, seed), reference)
    assert gpu.count("launch") == 0
    assert gpu.count("begin_capture") <= 1
    assert caplog.text.count("without CUDA graphs") == 1
    session.close()


def test_a_session_keeps_only_so_many_shapes_ready(
    machine: Any, pictures: Any, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = machine()
    monkeypatch.setattr(tensorrt, "MOST_LANES", 2)
    session = opened()
    for _ in range(2):
        for side in (12, 13, 14):
            for seed in range(3):
                same(session, pictures(1, side, seed), reference)
    assert gpu.count("drop execution context") == gpu.count("create_execution_context") - 2
    session.close()


def test_tensorrt_rtx_captures_by_itself(machine: Any, pictures: Any) -> None:
    gpu, session = machine("tensorrt_rtx", version="1.7.1"), opened()
    for seed in range(3):
        session.run({"image": pictures(1, 12 + seed)}, OUTPUTS)
    assert gpu.count("graphs whole graph") == gpu.count("create_execution_context") == 1
    assert gpu.count("begin_capture") == 0
    session.close()


def test_an_integrated_gpu_copies_nothing(machine: Any, pictures: Any, reference: Reference) -> None:
    gpu, session = machine(integrated=True), opened()
    same(session, pictures(2, 16), reference)
    assert gpu.count("upload") == gpu.count("download") == 0
    assert gpu.count("mem_alloc") == 1  # scratch
    assert gpu.count("pagelocked_empty") == 3
    session.close()


# -- which engine, and what if there is none --------------------------------------------------------------------------


def test_an_engine_is_found_by_its_key_and_the_log_says_which(
    machine: Any, pictures: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = machine()
    with caplog.at_level(logging.INFO):
        session = open_session(SMALL, SPEC, 1)
    assert isinstance(session, TensorRtSession)
    assert "engine small.tensorrt." in caplog.text
    assert "TensorRT 10.3.0" in caplog.text
    assert gpu.count("deserialize") == 1
    session.close()


def test_the_bundles_own_engine_comes_first(bare: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare()
    manifest = Bundle.open("starter").manifest
    manifest = msgspec.structs.replace(manifest, engines=(entry(),))
    contents = {**dict.fromkeys(manifest.required_files(), b"none"), entry().file: fake_gpu.plan(SMALL, PROFILE)}
    bundle = write_bundle(tmp_path / "bundle", manifest, contents)
    with caplog.at_level(logging.INFO):
        session = open_session(SMALL, SPEC, 1, bundle)
    assert "engine engines/small.tensorrt.engine" in caplog.text
    session.close()


def no_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensorrt, "compute_capability", lambda: None)


def no_library(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tensorrt", None)


def no_pycuda(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "pycuda.driver", None)


def no_engine(_patch: pytest.MonkeyPatch) -> None:
    for path in engine_cache().iterdir():
        path.unlink()


def other_version(_patch: pytest.MonkeyPatch) -> None:
    sys.modules["tensorrt"].__version__ = "10.4.0"  # type: ignore[attr-defined]


def other_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensorrt, "compute_capability", lambda: "12.0")


def damaged(_patch: pytest.MonkeyPatch) -> None:
    (path,) = engine_cache().glob("*.engine")
    path.write_bytes(b"damaged")


def refused(patch: pytest.MonkeyPatch) -> None:
    no_engine(patch)
    store(engine_cache(), entry(), b"junk")


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (no_gpu, ("an NVIDIA GPU", "see to the driver")),
        (no_library, ("TensorRT-RTX: ", 'pip install ".[tensorrt]"', "edge-ravlm engine build")),
        (no_pycuda, ("pycuda", )),
        (no_engine, ("there is none", "edge-ravlm engine build BUNDLE --target")),
        (other_version, ("made for library version 10.3.0, not 10.4.0", "edge-ravlm engine build")),
        (other_gpu, (f"made for compute capability {CAPABILITY}, not 12.0", "edge-ravlm engine build")),
        (damaged, ("are not the", "edge-ravlm engine build")),
        (refused, ("it does not take the engine (magicTag does not match)", "edge-ravlm engine build")),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_once_and_the_processor_takes_the_model(
    machine: Any, pictures: Any, reference: Reference, without: Callable[[pytest.MonkeyPatch], None],
    says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    machine()
    without(monkeypatch)
    with caplog.at_level(logging.WARNING):
        session = open_session(SMALL, SPEC, 1)
    assert isinstance(session, OnnxRuntimeSession)
    (record,) = caplog.records
    for part in (SPEC.file, "running it in ONNX Runtime, CPUExecutionProvider", *says):
        assert part in record.getMessage()
    same(session, pictures(1, 16), reference)


def test_an_engine_of_another_model_is_not_taken(machine: Any, caplog: pytest.LogCaptureFixture) -> None:
    machine()
    starter = Bundle.open("starter")
    spec = starter.manifest.flavor("cpu-u8").image
    model = starter.read(spec.file)
    session = open_session(model, msgspec.structs.replace(spec, backend="tensorrt"), 1, starter)
    assert isinstance(session, OnnxRuntimeSession)
    assert f"not {hashlib.sha256(model).hexdigest()}" in caplog.text


CALLS = [
    "device", "stream", "deserialize", "mem_alloc", "pagelocked_empty", "create_execution_context", "set_input_shape",
    "set_tensor_address",
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_whatever_fails_while_it_opens_leaves_nothing_behind(machine: Any, call: str, before: int) -> None:
    gpu: Gpu = machine(fail={call: before})
    session = open_session(SMALL, SPEC, 1)
    assert isinstance(session, OnnxRuntimeSession) == (gpu.fail[call] < 0)
    session.close()


# -- mistakes and failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feeds", "outputs", "says"),
    [
        ({"image": np.zeros((4, 16, 16, 3), np.uint8)}, OUTPUTS, r"shapes from \[1, 12, 12, 3\] to \[3, 16, 16, 3\]"),
        ({"image": np.zeros((1, 11, 16, 3), np.uint8)}, OUTPUTS, r"got \[1, 11, 16, 3\]"),
        ({"image": np.zeros((1, 16, 16), np.uint8)}, OUTPUTS, r"got \[1, 16, 16\]"),
        ({"image": np.zeros((1, 16, 16, 3), np.float32)}, OUTPUTS, "expected uint8, got float32"),
        ({"picture": np.zeros((1, 16, 16, 3), np.uint8)}, OUTPUTS, "expected image, got picture"),
        ({"image": np.zeros((1, 16, 16, 3), np.uint8)}, ("tokens",), "one of embedding, grid, got tokens"),
    ],
)
def test_what_the_engine_does_not_take_is_one_sentence(
    machine: Any, pictures: Any, reference: Reference, feeds: dict[str, Any], outputs: tuple[str, ...], says: str
) -> None:
    machine()
    session = opened()
    with pytest.raises(UsageError, match=says):
        session.run(feeds, outputs)
    same(session, pictures(1, 16), reference)
    session.close()


@LIBRARIES
def test_a_closed_session_says_so(machine: Any, pictures: Any, library: str) -> None:
    gpu: Gpu = machine(library)
    session = opened()
    session.run({"image": pictures(1, 16)}, OUTPUTS)
    session.close()
    released = gpu.count("free")
    session.close()
    assert gpu.count("free") == released
    with pytest.raises(UsageError, match="expected an open one, got a closed one"):
        session.run({"image": pictures(1, 16)}, OUTPUTS)


@pytest.mark.parametrize("call", ["upload", "download", "execute", "launch", "synchronize", "set_input_shape"])
@pytest.mark.parametrize("integrated", [False, True])
def test_a_failure_in_the_middle_of_a_run_releases_nothing_twice(
    machine: Any, pictures: Any, reference: Reference, call: str, integrated: bool
) -> None:
    gpu: Gpu = machine(integrated=integrated)
    session = opened()
    same(session, pictures(1, 16), reference)
    gpu.fail[call] = 0
    failed = []
    for seed in range(4):
        try:
            same(session, pictures(1 + seed % 2, 16, seed), reference)
        except EngineError as error:  # noqa: PERF203
            failed.append(error)
    assert len(failed) == (0 if integrated and "load" in call else 1) or call == "execute"
    for error in failed:
        assert str(error).startswith(f"model '{SPEC.file}': expected TensorRT 10.3.0 to run it, got ")
        assert "\n" not in str(error)
    session.close()
    session.close()
    assert not gpu.faults
    assert not gpu.held
    assert not gpu.alive  # though the errors, and with them their frames, are still there


def test_a_gpu_that_is_lost_can_still_be_closed(machine: Any, pictures: Any, caplog: pytest.LogCaptureFixture) -> None:
    gpu: Gpu = machine()
    session = opened()
    for seed in range(2):
        session.run({"image": pictures(1, 16, seed)}, OUTPUTS)
    gpu.fail = {"synchronize": 0, "free": 1}
    session.close()
    assert "did not let go of it: cuMemFree failed" in caplog.text
    session.close()


# -- the kernels that TensorRT-RTX compiled ---------------------------------------------------------------------------


def test_compiled_kernels_are_kept_for_the_next_time(machine: Any) -> None:
    gpu: Gpu = machine("tensorrt_rtx")
    opened().close()
    (kept,) = engine_cache().glob("*.kernels")
    assert CAPABILITY in kept.name
    assert kept.read_bytes() == b"kernels"
    assert gpu.kernels == []
    kept.write_bytes(b"kernels and more")
    opened().close()
    assert gpu.kernels == [b"kernels and more"]
    assert kept.read_bytes() == b"kernels and more"


def test_kernels_of_another_gpu_are_replaced(machine: Any) -> None:
    machine("tensorrt_rtx")
    opened().close()
    (kept,) = engine_cache().glob("*.kernels")
    kept.write_bytes(b"foreign")
    opened().close()
    assert kept.read_bytes() == b"kernels"


def test_where_kernels_cannot_be_kept_it_runs_all_the_same(machine: Any, pictures: Any, reference: Reference) -> None:
    machine("tensorrt_rtx")
    session = opened()
    same(session, pictures(1, 16), reference)
    for path in engine_cache().iterdir():
        path.unlink()
    engine_cache().rmdir()
    engine_cache().write_text("a file")
    session.close()
    engine_cache().unlink()


def test_a_library_without_kernels_to_keep_or_graphs_is_fine(
    machine: Any, pictures: Any, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("tensorrt_rtx")
    monkeypatch.delattr(fake_gpu.RuntimeConfig, "create_runtime_cache")
    monkeypatch.delattr(fake_gpu.RuntimeConfig, "cuda_graph_strategy")
    monkeypatch.delattr(sys.modules["tensorrt_rtx"], "CudaGraphStrategy")
    session = opened()
    same(session, pictures(1, 16), reference)
    session.close()
    assert not list(engine_cache().glob("*.kernels"))


def test_a_model_for_onnx_runtime_never_asks_for_a_gpu(bare: Any) -> None:
    gpu: Gpu = bare()
    session = open_session(SMALL, Model(file=SPEC.file), 1)
    assert isinstance(session, OnnxRuntimeSession)
    assert gpu.journal == []
