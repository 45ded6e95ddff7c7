"""Engines that the real TensorRT-RTX builds ahead of time, on a machine without a GPU, and the command that does it."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_ravlm.bundle import STARTER, Bundle, write_bundle
from edge_ravlm.cli import run
from edge_ravlm.engines import Key, find, host_platform
from edge_ravlm.errors import EngineError, MissingExtra, UsageError
from edge_ravlm.export import engine_cli, engines
from edge_ravlm.export.engines import Batch, Library, build
from edge_ravlm.manifest import Engine, Flavor, Model
from edge_ravlm.targets import Target, target

pytestmark = pytest.mark.export

FILE = "models/image.trt-s8.onnx"
CHIPS = ("8.9", "12.0")
IO = [
    {"name": "image", "mode": "input", "dtype": "uint8", "shape": [-1, 16, 16, 3]},
    {"name": "grid", "mode": "output", "dtype": "float16", "shape": [-1, 4, 14, 14]},
    {"name": "mean", "mode": "output", "dtype": "float32", "shape": [-1, 4]},
]


@pytest.fixture(scope="module")
def model() -> bytes:
    """One convolution as the flavour ``trt-s8`` has them: symmetric int8, FP16 around it, bytes cast first."""
    text = """<ir_version: 10, opset_import: ["" : 19]>
    g (uint8[n, 16, 16, 3] image) => (float16[n, 4, 14, 14] grid, float[n, 4] mean)
    {
        halves = Cast <to = 10> (image)
        planes = Transpose <perm = [0, 3, 1, 2]> (halves)
        quantized = QuantizeLinear (planes, step, zero)
        dequantized = DequantizeLinear (quantized, step, zero)
        kernels = DequantizeLinear <axis = 0> (weight, steps)
        grid = Conv (dequantized, kernels)
        floats = Cast <to = 1> (grid)
        mean = ReduceMean <keepdims = 0> (floats, sides)
    }"""
    found = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    arrays = {
        "step": np.float16(2),
        "zero": np.int8(0),
        "weight": weight,
        "steps": np.float16([1 / 128] * 4),
        "sides": np.array([2, 3]),
    }
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    onnx.checker.check_model(found, full_check=True)
    return bytes(found.SerializeToString())


@pytest.fixture(scope="module")
def rtx() -> Target:
    """The profile, for two GPUs."""
    return msgspec.structs.replace(target("rtx-40"), engine_compute_capabilities=CHIPS)


@pytest.fixture(scope="module")
def built(model: bytes, rtx: Target) -> tuple[Engine, bytes]:
    ((engine, plan),) = build(model, FILE, rtx)
    return engine, plan


@pytest.fixture(scope="module")
def bundle(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the flavour ``trt-s8``, of which only the model is real."""
    manifest = Bundle.open(STARTER).manifest
    flavor = Flavor(
        image=Model(file=FILE, backend="tensorrt", graph_optimization="disable"), text=manifest.flavors["cpu-u8"].text
    )
    manifest = msgspec.structs.replace(manifest, target="rtx-40", flavors={**manifest.flavors, "trt-s8": flavor})
    folder = tmp_path_factory.mktemp("bundles") / "small"
    write_bundle(folder, manifest, {**dict.fromkeys(manifest.required_files(), b"none"), FILE: model})
    return folder


@pytest.fixture
def refused(rtx: Target) -> Callable[[bytes], str]:
    """refused(model): the sentence."""

    def sentence(data: bytes) -> str:
        with pytest.raises(EngineError) as caught:
            build(data, FILE, rtx)
        return str(caught.value)

    return sentence


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_one_engine_serves_several_gpus(built: tuple[Engine, bytes], model: bytes) -> None:
    engine, plan = built
    assert engine.compute_capabilities == CHIPS
    assert (engine.flavor, engine.platform, engine.model) == ("tensorrt_rtx", host_platform(), FILE)
    assert engine.model_sha256 == hashlib.sha256(model).hexdigest()
    assert engine.library_version == Library(target("rtx-40")).version
    assert engine.seconds > 0
    assert len(plan) > len(model)


def test_pictures_of_two_sizes_take_one_engine(model: bytes, rtx: Target, refused: Callable[[bytes], str]) -> None:
    free = onnx.load_model_from_string(model)
    shapes = [value.type.tensor_type.shape.dim for value in (*free.graph.input, *free.graph.output)]
    for dim, name in zip((*shapes[0][1:3], *shapes[1][2:]), ("h", "w", "rows", "columns"), strict=True):
        dim.dim_param = name
    data = bytes(free.SerializeToString())
    ((engine, _),) = build(data, FILE, rtx, batch=Batch(sides=(12, 16)))
    assert [info.shape for info in engine.io] == [(-1, -1, -1, 3), (-1, 4, -1, -1), (-1, 4)]
    assert "inputs whose first side alone is dynamic" in refused(data)


def test_its_name_tells_engines_apart(built: tuple[Engine, bytes]) -> None:
    engine, _ = built
    for part in (engine.model_sha256[:12], f"tensorrt_rtx-{engine.library_version}", "sm89-120", host_platform()):
        assert part in engine.file
    assert engine.file.startswith("engines/image.trt-s8.")


def test_inputs_and_outputs_are_those_of_the_model(built: tuple[Engine, bytes]) -> None:
    assert json.loads(msgspec.json.encode(built[0].io)) == IO


def test_turing_gets_an_engine_of_its_own(model: bytes, rtx: Target) -> None:
    """One for all would be slower and larger for every one of them."""
    both = msgspec.structs.replace(rtx, engine_compute_capabilities=("8.9", "7.5"))
    found = build(model, FILE, both)
    assert [engine.compute_capabilities for engine, _ in found] == [("7.5",), ("8.9",)]
    assert len({engine.file for engine, _ in found}) == 2


def test_nothing_is_collected_while_the_library_holds_its_lock(model: bytes, rtx: Target) -> None:
    """A builder of before that a collection ends then waits for that lock for good."""
    seen: set[bool] = set()
    build(model, FILE, rtx, progress=lambda *_: seen.add(gc.isenabled()))
    assert seen == {False}
    assert gc.isenabled()
    with pytest.raises(EngineError):
        build(b"no model", FILE, rtx)
    assert gc.isenabled()


def test_a_model_for_one_batch_size_is_built_for_that_one(model: bytes, rtx: Target) -> None:
    fixed = onnx.load_model_from_string(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    ((engine, _),) = build(bytes(fixed.SerializeToString()), FILE, rtx, batch=Batch(most=4))
    assert [info.shape[0] for info in engine.io] == [2, 2, 2]


def test_progress_is_told(model: bytes, rtx: Target) -> None:
    steps: list[tuple[str, int, int]] = []
    build(model, FILE, rtx, progress=lambda *step: steps.append(step))
    assert steps
    assert all(phase and 0 < done <= total for phase, done, total in steps)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_an_operator_that_the_library_lacks_is_one_sentence(refused: Callable[[bytes], str]) -> None:
    text = """<ir_version: 10, opset_import: ["" : 19]> g (float[n, 8, 8] image) => (float[n] out)
    { out = Det (image) }"""
    said = refused(onnx.parser.parse_model(text).SerializeToString())
    assert "TensorRT-RTX 1." in said
    assert "got Det: unsupported node; replace that operator, or choose another target than rtx-40." in said


def test_the_flavour_for_processors_is_refused_by_its_node(refused: Callable[[bytes], str]) -> None:
    """Its biases are int32 behind Q/DQ nodes, which TensorRT does not have."""
    starter = Bundle.open(STARTER)
    said = refused(starter.read(starter.manifest.flavors["cpu-u8"].image.file))
    assert "DequantizeLinear at node" in said
    assert "Int32" in said
    assert "CUDA driver" not in said
    assert "\n" not in said


@pytest.mark.parametrize(("data", "says"), [(b"junk", "expected an ONNX file"), (b"", "at least one output")])
def test_what_is_no_model_is_one_sentence(refused: Callable[[bytes], str], data: bytes, says: str) -> None:
    said = refused(data)
    assert says in said
    assert said.endswith("; export the bundle again.")


def test_an_input_of_open_size_is_refused(refused: Callable[[bytes], str]) -> None:
    text = """<ir_version: 10, opset_import: ["" : 19]> g (float[n, m, 8] image) => (float[n, m, 8] out)
    { out = Relu (image) }"""
    assert "got 'image' of shape [-1, -1, 8]" in refused(onnx.parser.parse_model(text).SerializeToString())


def test_a_gpu_that_the_library_does_not_know_is_refused(model: bytes, rtx: Target) -> None:
    newer = msgspec.structs.replace(rtx, engine_compute_capabilities=("8.9", "99.0"))
    with pytest.raises(EngineError, match=r"got 99\.0; install a newer tensorrt-rtx"):
        build(model, FILE, newer)


def test_a_target_without_engines_is_refused() -> None:
    with pytest.raises(UsageError, match=r"target 'cpu-x86'.*use the bundle as it is"):
        Library(target("cpu-x86"))


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "import_module", _missing)
    with pytest.raises(MissingExtra, match=r'pip install "\.\[engines\]"'):
        Library(target("rtx-40"))
    with pytest.raises(MissingExtra, match=r'pip install "\.\[tensorrt\]"'):
        Library(target("jetson-orin-nano"))


def _missing(name: str) -> None:
    raise ModuleNotFoundError(name=name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_whatever_progress_raises_ends_the_build(model: bytes, rtx: Target, error: type[BaseException]) -> None:
    calls = 0

    def progress(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(error):
        build(model, FILE, rtx, progress=progress)
    assert calls == 1


# -- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    return run(["engine", "build", *map(str, arguments)])


def test_the_command_prints_what_it_built(
    bundle: Path, model: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Bundle.open(bundle).sha256
    assert command(bundle, "--target", "rtx-40", "-o", tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["target"]) == (str(tmp_path), "rtx-40")
    assert [row["compute_capabilities"] for row in found["engines"]] == [["7.5"], ["8.6", "8.9", "12.0"]]
    for row in found["engines"]:
        assert (row["flavor"], row["model"]) == ("tensorrt_rtx", FILE)
        assert row["library_version"].startswith("1.")
        assert row["model_sha256"] == hashlib.sha256(model).hexdigest()
        assert row["bytes"] == (tmp_path / row["file"]).stat().st_size
        assert row["seconds"] > 0
        assert row["io"] == IO
    assert Bundle.open(bundle).sha256 == before


@pytest.mark.parametrize("capability", ["7.5", "12.0"])
def test_what_it_built_is_found_by_the_gpu_that_it_is_for(
    bundle: Path, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    assert command(bundle, "--target", "rtx-40") == 0
    version = Library(target("rtx-40")).version
    key = Key("tensorrt_rtx", version, capability, host_platform(), hashlib.sha256(model).hexdigest())
    found = find(key, Bundle.open(bundle), [tmp_path / "engines"])
    assert found.engine is not None
    assert capability in found.engine.compute_capabilities
    assert hashlib.sha256(found.plan).hexdigest()[:12] in found.engine.file


def test_people_read_one_line_per_engine(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(bundle, "--target", "rtx-40", "-o", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(str(tmp_path) in line and "bytes, for compute capability" in line for line in lines)
    assert "7.5," in lines[0]


def _stops(after: int) -> Callable[[str], object]:
    """A user who presses Ctrl-C in the middle of a build."""

    @contextmanager
    def phases(what: str) -> Iterator[Callable[..., None]]:
        left = after

        def report(*_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        yield report

    return phases


def test_an_interrupted_build_leaves_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cli, "_phases", _stops(after=2))
    assert command(bundle, "--target", "rtx-40", "-o", tmp_path) == 130
    assert not list(tmp_path.iterdir())


def test_an_interrupted_build_leaves_the_engines_that_were_there(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(bundle, "--target", "rtx-40", "-o", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4
    monkeypatch.setattr(engine_cli, "_phases", _stops(after=2))
    assert command(bundle, "--target", "rtx-40", "-o", tmp_path) == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{bundle}", "--target", "toaster"), 2, "expected one of cpu-x86, "),
        (("{bundle}", "--target", "cpu-x86"), 2, "one whose GPU runs engines"),
        (("{bundle}", "--target", "rtx-40", "--max-batch", "0"), 2, "expected 1 or more"),
        (("{bundle}",), 2, "--target"),
        ((STARTER, "--target", "rtx-40"), 1, "expected flavour trt-s8, got cpu-u8"),
        (("{tmp}/none", "--target", "rtx-40"), 1, "nothing there"),
        (("{bundle}", "--target", "rtx-40", "-o", "{tmp}/file"), 1, "a place that can be written"),
        (("{bundle}", "--target", "rtx-40", "-o", "{tmp}/file/inside"), 1, "a place that can be written"),
    ],
)
def test_whatever_is_wrong_is_said_in_one_sentence(
    arguments: tuple[str, ...], code: int, says: str, bundle: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("a file")
    assert command(*(argument.format(bundle=bundle, tmp=tmp_path) for argument in arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.engine"))
