"""The fit of the closer look: it finds where things are, and its graph takes pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.quantize.cpu_u8 import quantize
from edge_ravlm.export.students.closer import CloserSettings, Fitted, fit, with_closer
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.manifest import Closer, Model
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.closer import find
from edge_ravlm.runtime.encoders import Eye

pytestmark = pytest.mark.export

SIDE = 8


@pytest.fixture(scope="module")
def material() -> Material:
    """White discs on dark grey."""
    disc = np.zeros((60, 60, 4), np.uint8)
    cv2.circle(disc, (30, 30), 29, (255, 255, 255, 255), -1)
    return Material([disc], [np.full((400, 400, 3), level, np.uint8) for level in (20, 40)])


def brightness(pictures: Sequence[Pixels]) -> np.ndarray:
    """Cells that say how bright they are and that they are there; a query for the first finds what is bright."""
    rows = []
    for one in pictures:
        small = cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_AREA).mean(2).ravel() / 255
        rows.append(np.stack([small, np.ones_like(small), small.mean() * np.ones_like(small)], 1))
    return np.asarray(rows, np.float32)


QUERY = np.array([12, 0, 0], np.float32)


@pytest.fixture(scope="module")
def fitted(material: Material) -> Fitted:
    return fit(brightness, QUERY, [material], CloserSettings(scenes=300, side=32), seed=1)


def test_it_finds_where_the_thing_is(fitted: Fitted) -> None:
    for x, y, radius in ((80, 100, 45), (220, 240, 60), (160, 90, 80)):
        scene = np.full((320, 320, 3), 30, np.uint8)
        cv2.circle(scene, (x, y), radius, (255, 255, 255), -1)
        cells = brightness([scene])[0]
        weights = np.exp(cells @ QUERY) / np.exp(cells @ QUERY).sum()
        features = weights @ cells
        extent = float(features / np.linalg.norm(features) @ fitted.weights + fitted.bias)
        focus = find(fitted.constants, Preprocess(height=320, width=320), weights, extent)
        assert (focus.x * 320, focus.y * 320) == (pytest.approx(x, abs=25), pytest.approx(y, abs=25))
        assert focus.extent * 320 == pytest.approx(2 * radius, abs=60)


def test_more_scenes_change_nothing_of_the_recipes_constants(fitted: Fitted) -> None:
    assert (fitted.constants.side, fitted.constants.margin, fitted.constants.studied) == (32, 1.5, (2.1,))


@pytest.fixture(scope="module")
def small_fit(small_student: ImageStudent) -> Fitted:
    rng = np.random.default_rng(0)
    channels = small_student.channels
    weights = rng.normal(0, 0.1, channels).astype(np.float32)
    query = rng.normal(0, 1, channels).astype(np.float32)
    return Fitted(Closer(side=20, margin=1.5, studied=(2.0,)), query, weights, 0.4)


def run(model: onnx.ModelProto, pictures: np.ndarray, *names: str) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"image": pictures}))


@pytest.mark.parametrize("is_quantized", [False, True])
def test_the_graph_says_where_it_looks_and_nothing_else_changes(
    small_graph: onnx.ModelProto, small_pictures: list[np.ndarray], small_fit: Fitted, is_quantized: bool
) -> None:
    before = quantize(small_graph, small_pictures[:24]) if is_quantized else small_graph
    model, pictures = with_closer(before, small_fit), np.concatenate(small_pictures[:5])
    embedding, tokens, attention, extent = run(model, pictures, "embedding", "tokens", "attention", "extent")
    for one, other in zip(run(before, pictures, "embedding", "tokens"), (embedding, tokens), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)  # with AVX-512, ONNX Runtime sums in another order
    powers = np.exp(tokens @ small_fit.query)
    weights = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(attention, weights, atol=1e-5)
    pooled = (weights[:, :, None] * tokens).sum(1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(extent[:, 0], pooled @ small_fit.weights + small_fit.bias, atol=1e-5)
    assert [output.name for output in before.graph.output] == ["embedding", "tokens"], "it is a copy"


def test_it_takes_pictures_of_any_size(
    small_graph: onnx.ModelProto, small_pictures: list[np.ndarray], small_fit: Fitted
) -> None:
    model = with_closer(small_graph, small_fit)
    for height, width, cells in ((32, 32, 64), (20, 20, 25), (64, 32, 128)):
        pictures = np.stack([cv2.resize(p[0], (width, height)) for p in small_pictures[:3]])
        embedding, tokens, attention = run(model, pictures, "embedding", "tokens", "attention")
        assert (embedding.shape, tokens.shape[1], attention.shape) == ((3, 16), cells, (3, cells))
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def test_a_second_look_and_a_study_are_sums_of_looks(
    small_graph: onnx.ModelProto, small_pictures: list[np.ndarray], small_fit: Fitted
) -> None:
    model = with_closer(small_graph, small_fit).SerializeToString()
    shape, pixels = Preprocess(height=32, width=32), small_pictures[0]
    plain = Eye(open_session(model, Model(file="x"), 1), shape, None, ("tokens",))
    eye = Eye(open_session(model, Model(file="x"), 1), shape, small_fit.constants, ("tokens",))
    frame = Frame(pixels[0])
    first, second, studied = eye.look(pixels), eye.closer_look(frame), eye.study(frame)
    assert plain.look(pixels).focus is None
    for look in (plain.look(pixels), plain.closer_look(frame), plain.study(frame), first):
        np.testing.assert_array_equal(look.embedding, eye.embed(pixels))
    np.testing.assert_array_equal(second.embedding, eye.closer_look(frame, first).embedding)
    np.testing.assert_array_equal(second.cells, first.cells)
    for look in (second, studied):
        assert float(np.linalg.norm(look.embedding)) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(second.embedding, first.embedding, atol=1e-3)
    assert not np.allclose(studied.embedding, second.embedding, atol=1e-4)
    plain.close()
    eye.close()


def test_a_closer_look_sees_what_the_first_one_could_not(small_graph: onnx.ModelProto, small_fit: Fitted) -> None:
    """A chequered frame is plain grey in the encoder's size."""
    session, seen = open_session(with_closer(small_graph, small_fit).SerializeToString(), Model(file="x"), 1), []

    class Noting:
        name = session.name

        def run(self, feeds: Any, outputs: Any) -> Any:
            seen.append(feeds["image"])
            return session.run(feeds, outputs)

        def close(self) -> None:
            session.close()

    fine = Frame(np.where(np.indices((64, 64)).sum(axis=0)[..., None] % 2, 255, np.zeros(3)).astype(np.uint8))
    eye = Eye(Noting(), Preprocess(height=32, width=32), small_fit.constants)
    eye.closer_look(fine)
    first, second = (int(np.ptp(pixels)) for pixels in seen)
    assert first <= 2
    assert second > 50
    eye.close()


def test_a_graph_that_makes_no_cells_is_refused(small_graph: onnx.ModelProto, small_fit: Fitted) -> None:
    for node in small_graph.graph.node:
        if node.op_type == "Reshape":
            node.op_type = "Identity"
            del node.input[1:]
    with pytest.raises(ValueError, match="0 nodes make cells"):
        with_closer(small_graph, small_fit)
