"""The two encoders of the starter bundle: what they promise to whoever compares their vectors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_ravlm.bundle import Bundle, write_bundle
from edge_ravlm.errors import BundleError, UsageError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.encoders import MAX_QUESTION, ImageEncoder, TextEncoder, check_question


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("starter")


@pytest.fixture(scope="module")
def image(bundle: Bundle) -> Iterator[ImageEncoder]:
    encoder = ImageEncoder(bundle, "cpu-u8", threads=1)
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> Iterator[TextEncoder]:
    encoder = TextEncoder(bundle, "cpu-u8")
    yield encoder
    encoder.close()


def test_a_picture_becomes_a_unit_vector_of_the_space(image: ImageEncoder, yard: Any) -> None:
    vector = image.embed(image.preprocess(Frame(yard.open)))
    assert vector.shape == (image.space.dim,)
    assert vector.dtype == np.float32
    assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(vector, image.embed(image.preprocess(Frame(yard.open))))


def test_what_looks_alike_lies_closer_than_what_does_not(image: ImageEncoder, yard: Any, strange: Any) -> None:
    opened, later, closed, other = (
        image.embed(image.preprocess(Frame(picture), region))
        for picture, region in (
            (yard.open, yard.gate),
            (yard.open_later, yard.gate),
            (yard.closed, yard.gate),
            (strange, None),
        )
    )
    assert opened @ later > opened @ closed > opened @ other


def test_a_region_is_the_same_as_its_crop(image: ImageEncoder, yard: Any) -> None:
    (x0, y0), (x1, y1) = yard.gate.points
    crop = Frame(yard.open[y0:y1, x0:x1].copy())
    np.testing.assert_array_equal(
        image.embed(image.preprocess(Frame(yard.open), yard.gate)), image.embed(image.preprocess(crop))
    )


def test_sentences_become_unit_vectors_in_their_order(text: TextEncoder) -> None:
    sentences = ["the gate is open", "a cat", "the bins go out on Monday, if it is not raining too hard"]
    together = text.embed(sentences)
    assert together.shape == (3, text.space.dim)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-3)
    for sentence, vector in zip(sentences, together, strict=True):
        alone = text.embed([sentence])[0]
        assert alone @ vector > 0.999, "padding to the longest sentence is not seen"
    assert text.embed([]).shape == (0, text.space.dim)


def test_sentences_about_one_thing_lie_closer_than_others(text: TextEncoder) -> None:
    gate, same, other = text.embed(["the gate is open", "an open gate", "the stock market fell on Tuesday"])
    assert gate @ same > gate @ other


def test_a_question_is_embedded_once_and_its_vector_cannot_be_spoilt(text: TextEncoder) -> None:
    first = text.embed_question("is the gate open?")
    assert text.embed_question("is the gate open?") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    np.testing.assert_allclose(first, text.embed(["is the gate open?"])[0], atol=1e-6)


@pytest.mark.parametrize("sentence", ["", " ", "\x00\x01", "\u200b"])
def test_a_sentence_in_which_nothing_is_left_is_refused(text: TextEncoder, sentence: str) -> None:
    with pytest.raises(UsageError, match="at least one word"):
        text.embed(["the gate is open", sentence])


@pytest.mark.parametrize("sentence", ["?", "7", "日本", "ça va", "🚪", "x" * 10_000, "word " * 2_000, "a\nb\tc"])
def test_other_scripts_signs_and_long_texts_are_embedded(text: TextEncoder, sentence: str) -> None:
    assert np.isfinite(text.embed([sentence])).all()


def test_the_end_of_a_long_text_counts(text: TextEncoder) -> None:
    page = "the garden has a shed and a path. " * 20
    cellar, attic = text.embed([page + "the boiler is in the cellar", page + "the painting is in the attic"])
    boiler = text.embed(["where is the boiler?"])[0]
    assert cellar @ boiler > attic @ boiler


def test_a_question_has_up_to_so_many_characters() -> None:
    assert check_question("x" * MAX_QUESTION) == "x" * MAX_QUESTION
    assert check_question("où?") == "où?"
    with pytest.raises(UsageError, match=f"{MAX_QUESTION + 1} characters"):
        check_question("x" * (MAX_QUESTION + 1))


def test_closed_encoders_say_so(bundle: Bundle) -> None:
    image, text = ImageEncoder(bundle, "cpu-u8", 1), TextEncoder(bundle, "cpu-u8")
    image.close()
    text.close()
    with pytest.raises(UsageError, match="closed"):
        image.embed(image.preprocess.buffer())
    with pytest.raises(UsageError, match="closed"):
        text.embed(["the gate"])


@pytest.mark.parametrize("kind", [ImageEncoder, TextEncoder])
def test_an_unknown_flavour_is_named_with_the_ones_there_are(bundle: Bundle, kind: Any) -> None:
    with pytest.raises(BundleError, match=r"flavour int3, got .*cpu-u8"):
        kind(bundle, "int3")


@pytest.mark.parametrize("tokenizer", [b"{}", b"no JSON", b"\xff\xfe"])
def test_a_bundle_with_a_garbled_tokenizer_is_refused(bundle: Bundle, tmp_path: Path, tokenizer: bytes) -> None:
    contents = {record.path: bundle.read(record.path) for record in bundle.manifest.files}
    contents[bundle.manifest.tokenizer] = tokenizer
    garbled = write_bundle(tmp_path / "bundle", bundle.manifest, contents)
    with pytest.raises(BundleError, match="tokenizer"):
        TextEncoder(garbled, "cpu-u8")


def wrong_at(side: int, model: bytes) -> bytes:
    """An image model whose embedding points the other way for pictures of one size."""
    import onnx

    graph = onnx.load_model_from_string(model)
    for node in graph.graph.node:
        node.output[:] = ["right" if name == "embedding" else name for name in node.output]
        node.input[:] = ["right" if name == "embedding" else name for name in node.input]
    constants = {"one": np.array([1]), "side": np.array([side])}
    graph.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    for kind, given, found in (
        ("Shape", ["image"], "shape"),
        ("Gather", ["shape", "one"], "height"),
        ("Equal", ["height", "side"], "small"),
        ("Neg", ["right"], "wrong"),
        ("Where", ["small", "wrong", "right"], "embedding"),
    ):
        graph.graph.node.append(onnx.helper.make_node(kind, given, [found]))
    return bytes(graph.SerializeToString())


def with_golden(bundle: Bundle, folder: Path, change: Callable[[dict[str, Any]], object], model: bytes = b"") -> Bundle:
    """The bundle with other golden arrays, and with another image model if one is given."""
    manifest = bundle.manifest
    contents = {record.path: bundle.read(record.path) for record in manifest.files}
    with np.load(io.BytesIO(contents[manifest.golden])) as arrays:
        golden = dict(arrays)
    change(golden)
    out = io.BytesIO()
    np.savez(out, **golden)
    contents[manifest.golden] = out.getvalue()
    if model:
        contents[manifest.flavor("cpu-u8").image.file] = model
    return write_bundle(folder, manifest, contents)


def glimpsed(bundle: Bundle, image: ImageEncoder, yard: Any) -> dict[str, Any]:
    """Golden glimpses, as exports write them."""
    pixels = np.concatenate([image.glimpse(Frame(picture)) for picture in (yard.open, yard.closed)])
    return {"glimpse_pixels": pixels, "glimpse_embeddings": np.stack([image.embed(one[None]) for one in pixels])}


@pytest.mark.parametrize("share", [0.0, 0.5, np.nan], ids=["another", "half as long", "no number"])
def test_a_model_that_computes_something_else_here_is_refused(bundle: Bundle, tmp_path: Path, share: float) -> None:
    def change(golden: dict[str, Any]) -> None:
        golden["embeddings"][-1] *= share

    with pytest.raises(BundleError, match=r"golden frames with a cosine of at least 0\.97 .* got"):
        ImageEncoder(with_golden(bundle, tmp_path / "bundle", change), "cpu-u8", 1)


@pytest.mark.export
def test_so_is_one_whose_glimpses_alone_are_wrong(
    bundle: Bundle, image: ImageEncoder, yard: Any, tmp_path: Path
) -> None:
    known = glimpsed(bundle, image, yard)
    model = wrong_at(image.glimpse.height, bundle.read(bundle.manifest.flavor("cpu-u8").image.file))
    ImageEncoder(with_golden(bundle, tmp_path / "good", lambda golden: golden.update(known)), "cpu-u8", 1).close()
    with pytest.raises(BundleError, match=r"golden glimpses with a cosine of at least 0\.97"):
        ImageEncoder(with_golden(bundle, tmp_path / "bad", lambda golden: golden.update(known), model), "cpu-u8", 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda golden: golden.pop("embeddings"), "embeddings"),
        (lambda golden: golden.update(pixels=golden["pixels"][:0], embeddings=golden["embeddings"][:0]), "shapes"),
        (lambda golden: golden.update(glimpse_pixels=golden["pixels"]), "glimpse_embeddings"),
        (
            lambda golden: golden.update(glimpse_pixels=golden["pixels"], glimpse_embeddings=golden["embeddings"]),
            "glimpse_shapes",
        ),
    ],
)
def test_golden_arrays_that_are_none_are_refused(
    bundle: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    with pytest.raises(BundleError, match=f"frames and their embeddings in .*{says}"):
        ImageEncoder(with_golden(bundle, tmp_path / "bundle", change), "cpu-u8", 1)
