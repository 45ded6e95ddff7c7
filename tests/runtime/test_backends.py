"""Backends: real ONNX Runtime on the starter's own models, and files that are none."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import Session, open_session
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession, providers

OUTPUT = ("embedding",)


@pytest.fixture(scope="module")
def spec() -> Model:
    return Bundle.open("starter").manifest.flavor("cpu-u8").image


@pytest.fixture(scope="module")
def model(spec: Model) -> bytes:
    return Bundle.open("starter").read(spec.file)


@pytest.fixture(scope="module")
def session(model: bytes, spec: Model) -> Session:
    return open_session(model, spec, threads=1)


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    buffer = Bundle.open("starter").manifest.preprocess.buffer()
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, buffer.shape, np.uint8) for _ in range(4)]


def test_a_model_runs_and_gives_the_outputs_asked_for_in_order(session: Session, pictures: list[Pixels]) -> None:
    embedding, tokens = session.run({"image": pictures[0]}, ("embedding", "tokens"))
    again, swapped = session.run({"image": pictures[0]}, ("tokens", "embedding"))
    assert embedding.shape == swapped.shape
    np.testing.assert_array_equal(embedding, swapped)
    np.testing.assert_array_equal(tokens, again)
    assert embedding.dtype == np.float32


def test_results_are_the_callers_own(session: Session, pictures: list[Pixels]) -> None:
    (first,) = session.run({"image": pictures[0]}, OUTPUT)
    kept = first.copy()
    session.run({"image": pictures[1]}, OUTPUT)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(session.run({"image": pictures[0]}, OUTPUT)[0], kept)


def test_several_threads_may_run_one_session(session: Session, pictures: list[Pixels]) -> None:
    alone = [session.run({"image": picture}, OUTPUT)[0] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda picture: session.run({"image": picture}, OUTPUT)[0], pictures))
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, other)


def test_the_number_of_threads_changes_no_answer(model: bytes, spec: Model, pictures: list[Pixels]) -> None:
    one, two = (open_session(model, spec, threads=n).run({"image": pictures[0]}, OUTPUT)[0] for n in (1, 2))
    assert float((one * two).sum()) > 0.999


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "all"])
def test_every_optimization_level_of_the_manifest_is_known(
    model: bytes, spec: Model, pictures: list[Pixels], level: str
) -> None:
    opened = open_session(model, msgspec.structs.replace(spec, graph_optimization=level), threads=1)
    assert float(np.linalg.norm(opened.run({"image": pictures[0]}, OUTPUT)[0])) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("fed", "wanted"), [("input_ids", "embedding"), ("image", "answer")])
def test_a_model_of_other_inputs_or_outputs_is_named(
    session: Session, pictures: list[Pixels], fed: str, wanted: str
) -> None:
    with pytest.raises(BundleError, match=f"expected one that takes {fed} and gives {wanted}") as caught:
        session.run({fed: pictures[0]}, (wanted,))
    assert "\n" not in str(caught.value)


def test_a_closed_session_says_so(model: bytes, spec: Model, pictures: list[Pixels]) -> None:
    opened = open_session(model, spec, threads=1)
    opened.close()
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        opened.run({"image": pictures[0]}, OUTPUT)


@pytest.mark.parametrize("garbage", [b"", b"no model", b"\x08\x08" * 5000, None])
def test_a_file_that_is_no_model_is_named_in_one_sentence(model: bytes, spec: Model, garbage: bytes | None) -> None:
    with pytest.raises(BundleError, match=spec.file) as caught:
        open_session(model[: len(model) // 2] if garbage is None else garbage, spec, threads=1)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.got


def test_a_backend_that_cannot_run_here_falls_back_to_the_cpu_and_logs_it(
    model: bytes, spec: Model, pictures: list[Pixels], caplog: pytest.LogCaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever this machine has of TensorRT: nobody built an engine of this model."""
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        opened = open_session(model, msgspec.structs.replace(spec, backend="tensorrt"), threads=1)
    assert isinstance(opened, OnnxRuntimeSession)
    assert opened.run({"image": pictures[0]}, OUTPUT)[0].shape[0] == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"model '{spec.file}': running it in ONNX Runtime, CPUExecutionProvider; ")


@pytest.mark.parametrize(
    ("backend", "there", "wanted"),
    [
        ("onnxruntime", ["CUDAExecutionProvider"], []),
        ("tensorrt", ["CUDAExecutionProvider"], ["CUDAExecutionProvider"]),
        (
            "tensorrt",
            ["CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider"],
            ["NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider"],
        ),
        ("tensorrt", ["DmlExecutionProvider"], []),
    ],
)
def test_a_gpus_model_is_offered_to_every_provider_for_gpus(
    spec: Model, monkeypatch: pytest.MonkeyPatch, backend: str, there: list[str], wanted: list[str]
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*there, "CPUExecutionProvider"])
    assert providers(msgspec.structs.replace(spec, backend=backend)) == [*wanted, "CPUExecutionProvider"]


def test_where_no_gpu_answers_the_cpu_does(
    model: bytes, spec: Model, pictures: list[Pixels], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This ONNX Runtime knows no CUDA: it goes on as one does whose driver is missing."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        opened = OnnxRuntimeSession.open(model, msgspec.structs.replace(spec, backend="tensorrt"), 1)
    assert opened.provider == "CPUExecutionProvider"
    (embedding,), (wanted,) = (one.run({"image": pictures[0]}, OUTPUT) for one in (opened, session))
    np.testing.assert_array_equal(embedding, wanted)
