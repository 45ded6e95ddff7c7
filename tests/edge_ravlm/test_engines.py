"""An engine is used where its whole key matches and its bytes are whole; whatever else lies there is passed over."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_ravlm import engines
from edge_ravlm.bundle import Bundle, write_bundle
from edge_ravlm.engines import Key, check_writable, compute_capability, engine_cache, engine_name, find, store
from edge_ravlm.errors import StorageError
from edge_ravlm.manifest import Engine, Manifest, TensorInfo

MODEL = "models/image.trt-s8.onnx"
KEY = Key(
    flavor="tensorrt_rtx",
    library_version="1.7.1",
    compute_capability="8.9",
    platform="linux-x86_64",
    model_sha256="5" * 64,
)
ENGINE = Engine(
    file=f"engines/{engine_name(MODEL, '5' * 64, 'tensorrt_rtx', '1.7.1', ['8.6', '8.9'], 'linux-x86_64')}.engine",
    model=MODEL,
    model_sha256="5" * 64,
    flavor="tensorrt_rtx",
    library_version="1.7.1",
    compute_capabilities=("8.6", "8.9"),
    platform="linux-x86_64",
    seconds=1.5,
    io=(TensorInfo(name="image", mode="input", dtype="uint8", shape=(-1, 224, 224, 3)),),
)
PLAN = b"an engine " * 100


Lay = Callable[..., Bundle]


@pytest.fixture
def lay(tmp_path: Path, manifest: Manifest) -> Lay:
    """lay(*engines): a bundle that holds them, all with the bytes ``PLAN``."""

    def write(*held: Engine) -> Bundle:
        whole = msgspec.structs.replace(manifest, engines=held)
        contents = dict.fromkeys(whole.required_files(), b"the bytes of a file")
        return write_bundle(tmp_path / "bundle", whole, {**contents, **{engine.file: PLAN for engine in held}})

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def key(**changes: Any) -> Key:
    return replace(KEY, **changes)


def record(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def plan(folder: Path) -> Path:
    (path,) = folder.glob("*.engine")
    return path


# -- what is found ----------------------------------------------------------------------------------------------------


def test_an_engine_in_the_bundle_is_found(lay: Lay) -> None:
    found = find(KEY, lay(ENGINE))
    assert (found.engine, found.plan) == (ENGINE, PLAN)
    assert found.reason == f"engine {ENGINE.file}"


def test_an_engine_in_a_folder_is_found(lay: Lay, folder: Path) -> None:
    stored = store(folder, ENGINE, PLAN)
    found = find(KEY, lay(), [folder.with_name("none"), folder])
    assert (found.engine, found.plan) == (stored, PLAN)
    assert found.reason == f"engine {stored.file}"
    assert msgspec.structs.replace(stored, file=ENGINE.file) == ENGINE


@pytest.mark.parametrize("capability", ["8.6", "8.9"])
def test_every_gpu_that_it_was_built_for_takes_it(lay: Lay, capability: str) -> None:
    assert find(key(compute_capability=capability), lay(ENGINE)).plan == PLAN


def test_the_bundle_comes_first_and_the_folders_in_their_order(lay: Lay, tmp_path: Path) -> None:
    for name in ("first", "second"):
        store(tmp_path / name, ENGINE, name.encode())
    bundle = lay(ENGINE)
    folders = [tmp_path / "first", tmp_path / "second"]
    assert find(KEY, bundle, folders).plan == PLAN
    (tmp_path / "bundle" / ENGINE.file).write_bytes(b"x" * len(PLAN))
    assert find(KEY, bundle, folders).plan == b"first"
    plan(tmp_path / "first").unlink()
    assert find(KEY, bundle, folders).plan == b"second"


def test_no_engines_at_all_is_said(lay: Lay, folder: Path) -> None:
    found = find(KEY, lay(), [folder])
    assert (found.engine, found.plan) == (None, b"")
    assert found.reason == "no engine fits (there is none)"


# -- what is passed over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["bundle", "folder"])
@pytest.mark.parametrize(
    ("part", "other", "says"),
    [
        ("flavor", "tensorrt", "made for flavor tensorrt_rtx, not tensorrt"),
        ("library_version", "1.7.2", "made for library version 1.7.1, not 1.7.2"),
        ("compute_capability", "9.0", "made for compute capability 8.6, 8.9, not 9.0"),
        ("platform", "linux-aarch64", "made for platform linux-x86_64, not linux-aarch64"),
        ("model_sha256", "6" * 64, f"made for model sha256 {'5' * 64}, not {'6' * 64}"),
    ],
)
def test_an_engine_for_anything_else_is_passed_over_with_the_reason(
    lay: Lay, folder: Path, place: str, part: str, other: str, says: str
) -> None:
    bundle = lay(ENGINE) if place == "bundle" else lay()
    folders = []
    if place == "folder":
        store(folder, ENGINE, PLAN)
        folders = [folder]
    found = find(key(**{part: other}), bundle, folders)
    assert (found.engine, found.plan) == (None, b"")
    assert says in found.reason


@pytest.mark.parametrize("bytes_", [PLAN[:-1], b"", b"x" * len(PLAN)], ids=["torn", "empty", "altered"])
def test_an_engine_whose_bytes_are_not_those_that_were_written_is_never_handed_out(
    lay: Lay, folder: Path, bytes_: bytes
) -> None:
    store(folder, ENGINE, PLAN)
    plan(folder).write_bytes(bytes_)
    found = find(KEY, lay(), [folder])
    assert (found.engine, found.plan) == (None, b"")
    assert f"its {len(bytes_)} bytes are not the {len(PLAN)} that were written" in found.reason


def test_an_engine_in_the_bundle_that_was_altered_is_never_handed_out(lay: Lay, tmp_path: Path) -> None:
    bundle = lay(ENGINE)
    (tmp_path / "bundle" / ENGINE.file).write_bytes(b"x" * len(PLAN))
    found = find(KEY, bundle)
    assert found.engine is None
    assert "with SHA-256" in found.reason


def test_a_record_without_its_engine_is_passed_over(lay: Lay, folder: Path) -> None:
    store(folder, ENGINE, PLAN)
    plan(folder).unlink()
    found = find(KEY, lay(), [folder])
    assert found.engine is None
    assert "No such file" in found.reason


@pytest.mark.parametrize("foreign", ["../secret", "/etc/hostname", "another.engine", ""])
def test_a_record_that_names_a_file_that_is_not_its_own_is_passed_over(lay: Lay, folder: Path, foreign: str) -> None:
    """Whatever it says of that file's hash: what is loaded runs on the GPU."""
    store(folder, ENGINE, PLAN)
    for path in (folder.with_name("secret"), folder / "another.engine"):
        path.write_bytes(PLAN)
    whole = msgspec.json.decode(record(folder).read_bytes())
    whole["engine"]["file"] = foreign
    record(folder).write_bytes(msgspec.json.encode(whole))
    found = find(KEY, lay(), [folder])
    assert found.engine is None
    assert f"{record(folder).name}: it names a file that is not its own" in found.reason


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"engine": 3}', b"[" * 100_000, b" " * 2_000_000],
    ids=["empty", "torn", "list", "binary", "wrong", "deep", "huge"],
)
def test_what_is_no_record_is_passed_over(lay: Lay, folder: Path, garbage: bytes) -> None:
    store(folder, ENGINE, PLAN)
    record(folder).write_bytes(garbage)
    (folder / "a.json").write_bytes(garbage)
    bundle = lay()
    found = find(KEY, bundle, [folder])
    assert found.engine is None
    assert "a.json: " in found.reason
    stored = store(folder, ENGINE, PLAN)
    assert find(KEY, bundle, [folder]).engine == stored


# -- how one is written -----------------------------------------------------------------------------------------------


def test_a_new_engine_takes_the_place_of_the_old_one(lay: Lay, folder: Path) -> None:
    old, new = store(folder, ENGINE, b"old"), store(folder, ENGINE, b"new")
    assert old.file != new.file
    assert sorted(path.name for path in folder.iterdir()) == sorted([new.file, record(folder).name])
    assert find(KEY, lay(), [folder]).plan == b"new"


def test_whoever_may_read_the_users_files_may_read_engines(folder: Path) -> None:
    store(folder, ENGINE, PLAN)
    usual = folder / "usual"
    usual.write_bytes(b"")
    assert {path.stat().st_mode for path in folder.iterdir()} == {usual.stat().st_mode}


def test_engines_for_other_gpus_stay(lay: Lay, folder: Path) -> None:
    name = engine_name(MODEL, "5" * 64, "tensorrt_rtx", "1.7.1", ["7.5"], "linux-x86_64")
    turing = msgspec.structs.replace(ENGINE, file=f"engines/{name}.engine", compute_capabilities=("7.5",))
    store(folder, turing, b"for Turing")
    store(folder, ENGINE, PLAN)
    bundle = lay()
    assert find(KEY, bundle, [folder]).plan == PLAN
    assert find(key(compute_capability="7.5"), bundle, [folder]).plan == b"for Turing"


@pytest.mark.parametrize("step", [0, 1], ids=["engine", "record"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("there_before", [False, True], ids=["none before", "one before"])
def test_writing_that_is_cut_off_leaves_what_was_there(
    lay: Lay, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, stop: BaseException, there_before: bool
) -> None:
    bundle = lay()
    if there_before:
        store(folder, ENGINE, b"the one before")
    steps = 0

    def moved(*names: Any, whole: Callable[..., Path] = Path.replace) -> Path:
        nonlocal steps
        if steps == step:
            raise stop
        steps += 1
        return whole(*names)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", moved)
        with pytest.raises(StorageError if isinstance(stop, OSError) else KeyboardInterrupt):
            store(folder, ENGINE, PLAN)
    found = find(KEY, bundle, [folder])
    assert found.plan == (b"the one before" if there_before else b"")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    store(folder, ENGINE, b"the next")
    assert find(KEY, bundle, [folder]).plan == b"the next"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_place_that_takes_no_files_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    for write in (check_writable, lambda folder: store(folder, ENGINE, PLAN)):
        with pytest.raises(StorageError, match="expected a place that can be written"):
            write(tmp_path / place)
    assert (tmp_path / "file").read_bytes() == b""


def test_looking_whether_a_folder_takes_files_leaves_none(folder: Path) -> None:
    check_writable(folder)
    assert list(folder.iterdir()) == []


# -- names and the machine --------------------------------------------------------------------------------------------


def test_a_name_says_the_whole_key() -> None:
    name = engine_name("models/image.trt-s8.onnx", hashlib.sha256(b"").hexdigest(), "tensorrt", "10.3", ["8.7"], "x-y")
    assert name == "image.trt-s8.e3b0c44298fc.tensorrt-10.3.sm87.x-y"


def test_the_cache_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path))
    assert engine_cache() == tmp_path / "engines"


def test_a_machine_without_a_driver_has_no_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(engines.ctypes, "CDLL", no_driver)
    assert compute_capability() is None


class _Driver:
    """CUDA's driver, as far as it is asked: one GPU of the given compute capability, and a call that fails."""

    def __init__(self, fails: str = "") -> None:
        self._fails = fails

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self._fails:
                return 100
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            return 0

        return call


@pytest.mark.parametrize(
    ("fails", "found"), [("", "8.7"), ("cuInit", None), ("cuDeviceGet", None), ("cuDeviceGetAttribute", None)]
)
def test_the_driver_is_asked_for_the_compute_capability(
    monkeypatch: pytest.MonkeyPatch, fails: str, found: str | None
) -> None:
    monkeypatch.setattr(engines.ctypes, "CDLL", lambda name: _Driver(fails))
    assert compute_capability() == found
