"""OpenVINO on the starter's own model: it computes the same, is kept in the cache, and runs where it wins."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import EngineError, UsageError
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.manifest import Model
from edge_ravlm.runtime.backends import choice
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession
from edge_ravlm.runtime.backends.openvino import OpenVinoSession
from edge_ravlm.runtime.encoders import ImageEncoder
from edge_ravlm.runtime.opening import load

OUTPUT = ("embedding",)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("starter")


@pytest.fixture(scope="module")
def spec(bundle: Bundle) -> Model:
    return bundle.manifest.flavor("cpu-u8").image


@pytest.fixture(scope="module")
def model(bundle: Bundle, spec: Model) -> bytes:
    return bundle.read(spec.file)


@pytest.fixture(scope="module")
def pictures(yard: Any, bundle: Bundle) -> list[Pixels]:
    return [bundle.manifest.preprocess(Frame.of(picture)) for picture in (yard.closed, yard.open)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_TURNS", 2)


def opened(model: bytes, spec: Model) -> OpenVinoSession:
    return OpenVinoSession.open(model, spec, 1)


def choose(model: bytes, spec: Model, bundle: Bundle, pixels: Pixels, wish: str | None = choice.AUTO) -> str:
    session = choice.open_fastest(model, spec, 1, bundle, [{"image": pixels}], "embedding", wish)
    choice.settle(session)
    assert session.run({"image": pixels}, OUTPUT)[0].shape[0] == 1
    session.close()
    return session.name


def test_it_computes_what_onnx_runtime_does_at_every_size(model: bytes, spec: Model, pictures: list[Pixels]) -> None:
    theirs, ours = opened(model, spec), OnnxRuntimeSession.open(model, spec, 1)
    for pixels in (*pictures, np.ascontiguousarray(pictures[0][:, :160, :160])):
        one, other = (session.run({"image": pixels}, ("embedding", "tokens")) for session in (theirs, ours))
        assert float(one[0][0] @ other[0][0]) > 0.99
        assert one[1].shape == other[1].shape
        assert one[0].dtype == np.float32
    theirs.close()


def test_results_are_the_callers_own_from_every_thread(model: bytes, spec: Model, pictures: list[Pixels]) -> None:
    session = opened(model, spec)
    alone = [session.run({"image": pixels}, OUTPUT)[0] for pixels in pictures]
    kept = [found.copy() for found in alone]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda row: (row % 2, session.run({"image": pictures[row % 2]}, OUTPUT)[0]), range(24)))
    for row, found in many:
        np.testing.assert_array_equal(found, kept[row])
    for found, before in zip(alone, kept, strict=True):
        np.testing.assert_array_equal(found, before)


def test_a_closed_one_says_so(model: bytes, spec: Model, pictures: list[Pixels]) -> None:
    session = opened(model, spec)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="an open one"):
        session.run({"image": pictures[0]}, OUTPUT)


def test_what_is_no_model_says_so(spec: Model, pictures: list[Pixels]) -> None:
    with pytest.raises(EngineError, match="one that OpenVINO"):
        opened(b"no model", spec).run({"image": pictures[0]}, OUTPUT)


def test_what_was_compiled_is_kept_and_what_is_broken_compiled_again(
    model: bytes, spec: Model, pictures: list[Pixels], cache: Path
) -> None:
    (first,) = opened(model, spec).run({"image": pictures[0]}, OUTPUT)
    (kept,) = (cache / "openvino").iterdir()
    written = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(opened(model, spec).run({"image": pictures[0]}, OUTPUT)[0], first)
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(b"broken")
    np.testing.assert_array_equal(opened(model, spec).run({"image": pictures[0]}, OUTPUT)[0], first)
    assert kept.stat().st_size > 10_000
    assert len(list(kept.parent.iterdir())) == 1


def test_without_a_cache_it_runs_all_the_same(
    model: bytes, spec: Model, pictures: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGE_RAVLM_CACHE", str(tmp_path / "file"))
    assert opened(model, spec).run({"image": pictures[0]}, OUTPUT)[0].shape[0] == 1


@pytest.mark.usefixtures("fewer_turns")
def test_the_choice_is_measured_once_and_remembered(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], cache: Path
) -> None:
    assert choose(model, spec, bundle, pictures[0]) in ("onnxruntime", "openvino")
    (file,) = (cache / "backends").iterdir()
    for name in ("openvino", "onnxruntime"):
        file.write_text(name)
        assert choose(model, spec, bundle, pictures[0]) == name
    file.write_text("broken")
    assert choose(model, spec, bundle, pictures[0]) == file.read_text()


@pytest.mark.parametrize(("share", "name"), [(0.5, "openvino"), (1.0, "onnxruntime")])
def test_the_faster_one_wins(
    share: float, name: str, model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], monkeypatch: Any
) -> None:
    monkeypatch.setattr(choice, "_seconds", lambda session, *_: share if isinstance(session, OpenVinoSession) else 1.0)
    assert choose(model, spec, bundle, pictures[0]) == name


def test_one_that_computes_something_else_never_wins(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OpenVinoSession.run

    def wrong(self: OpenVinoSession, feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> list[Any]:
        return [np.roll(found, 1, axis=-1) for found in run(self, feeds, outputs)]

    monkeypatch.setattr(OpenVinoSession, "run", wrong)
    monkeypatch.setattr(choice, "_seconds", lambda session, *_: 0.5 if isinstance(session, OpenVinoSession) else 1.0)
    assert choose(model, spec, bundle, pictures[0]) == "onnxruntime"
    assert choose(model, spec, bundle, pictures[0]) == "onnxruntime", "nor at a start that remembers it as faster"


def test_nor_does_one_whose_glimpses_alone_are_wrong(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = OpenVinoSession.run

    def wrong(self: OpenVinoSession, feeds: Mapping[str, Any], outputs: tuple[str, ...]) -> list[Any]:
        small = feeds["image"].shape[1] < bundle.manifest.preprocess.height
        return [-found if small else found for found in run(self, feeds, outputs)]

    monkeypatch.setattr(OpenVinoSession, "run", wrong)
    monkeypatch.setattr(choice, "_LATER_S", 0.0)
    monkeypatch.setattr(choice, "_faster", lambda *_: "openvino")
    image = ImageEncoder(bundle, "cpu-u8", 1, "auto")
    image.settle()
    assert image.backend == "onnxruntime"
    image.close()
    assert "computes something else here" in caplog.text


def test_one_that_cannot_be_opened_leaves_the_first_in_place(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*_: Any) -> OpenVinoSession:
        raise OSError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(OpenVinoSession, "open", broken)
    assert choose(model, spec, bundle, pictures[0]) == "onnxruntime"
    assert "OpenVINO is left out: libopenvino.so" in caplog.text


def test_the_first_answers_do_not_wait_for_it(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()
    open_it = OpenVinoSession.open

    def slowly(*given: Any) -> OpenVinoSession:
        opening.set()
        go_on.wait(60)
        return open_it(*given)

    monkeypatch.setattr(OpenVinoSession, "open", slowly)
    monkeypatch.setattr(choice, "_LATER_S", 0.0)
    monkeypatch.setattr(choice, "_faster", lambda *_: "openvino")
    session = choice.open_fastest(model, spec, 1, bundle, [{"image": pictures[0]}], "embedding", choice.AUTO)
    opening.wait(60)
    before = session.run({"image": pictures[0]}, OUTPUT)[0]
    assert session.name == "onnxruntime"
    go_on.set()
    choice.settle(session)
    assert session.name == "openvino"
    assert float(session.run({"image": pictures[0]}, OUTPUT)[0][0] @ before[0]) > 0.99
    session.close()


def test_what_is_closed_at_once_opens_nothing(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoSession, "open", lambda *_: pytest.fail("it was opened"))
    choice.open_fastest(model, spec, 1, bundle, [{"image": pictures[0]}], "embedding", choice.AUTO).close()


def test_where_it_is_not_installed_nothing_is_measured(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda _: None)
    assert choose(model, spec, bundle, pictures[0]) == "onnxruntime"
    assert not cache.exists()


def test_the_environment_says_which_unless_the_caller_does(
    model: bytes, spec: Model, bundle: Bundle, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_RAVLM_BACKEND", "openvino")
    assert choose(model, spec, bundle, pictures[0], None) == "openvino"
    assert choose(model, spec, bundle, pictures[0], "onnxruntime") == "onnxruntime"
    monkeypatch.setenv("EDGE_RAVLM_BACKEND", "openvno")
    with pytest.raises(UsageError, match="'openvno'"):
        choose(model, spec, bundle, pictures[0], None)


def test_the_main_job_runs_in_it(yard: Any) -> None:
    with load("starter", threads=1, budget_ms=60_000, backend="openvino") as ravlm:
        assert ravlm.backend == "openvino"
        for picture, text in ((yard.closed, "the gate is closed"), (yard.open, "the gate is open")):
            ravlm.remember(picture, text, region=yard.gate)
        assert ravlm.ask(yard.open_later, "is the gate open?", region=yard.gate).text == "the gate is open"
        assert ravlm.ask(yard.closed_later, "is the gate open?", region=yard.gate).text == "the gate is closed"
