"""The manifest: every field is checked, and what is wrong is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.errors import BundleError
from edge_ravlm.manifest import MANIFEST_NAME, Manifest, decode_manifest, encode_manifest, space_id

Path = tuple[str | int, ...]
STARTER_JSON: dict[str, Any] = json.loads(Bundle.open(STARTER).read(MANIFEST_NAME))
for _newer in ("fusion", "meaning_space"):  # what bundles need not have
    STARTER_JSON.pop(_newer, None)
STARTER_JSON["flavors"]["cpu-u8"].pop("fusion", None)


def decode(plain: object) -> Manifest:
    return decode_manifest(json.dumps(plain).encode(), "bundle 'b'")


def walk(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a JSON value: its fields, the first of each list, and what is in them."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from walk(value[0], (*path, 0))


PLACES = list(walk(STARTER_JSON))
FIELDS = [path for path in PLACES if isinstance(path[-1], str) and path[-1] != "cpu-u8"]


def put(path: Path, value: object) -> dict[str, Any]:
    """The starter's manifest with one place changed."""
    plain = copy.deepcopy(STARTER_JSON)
    at(plain, path[:-1])[path[-1]] = value
    return plain


def at(plain: Any, path: Path) -> Any:
    for step in path:
        plain = plain[step]
    return plain


def test_a_manifest_survives_writing_and_reading(manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    assert decode_manifest(data, "here") == manifest
    assert encode_manifest(decode_manifest(data, "here")) == data
    assert data.decode().count("\n") > 50  # people read it, and compare two of them


def test_the_order_of_fields_does_not_matter(manifest: Manifest) -> None:
    backwards = dict(reversed(json.loads(encode_manifest(manifest)).items()))
    assert encode_manifest(decode(backwards)) == encode_manifest(manifest)


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type_is_refused_wherever_it_stands(path: Path) -> None:
    for wrong in ([[]], {"": []}):
        with pytest.raises(BundleError, match=r"bundle 'b': expected a valid manifest.json, got .*`\$") as refused:
            decode(put(path, wrong))
        assert str(path[0]) in str(refused.value)


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: ".".join(map(str, path)))
def test_a_field_that_is_missing_is_named_unless_it_has_a_default(path: Path) -> None:
    plain = copy.deepcopy(STARTER_JSON)
    del at(plain, path[:-1])[path[-1]]
    try:
        written = json.loads(encode_manifest(decode(plain)))
    except BundleError as error:
        refused = str(error)
    else:
        refused = ""
        assert path[-1] in at(written, path[:-1])  # the default is written out
    assert not refused or f"missing required field `{path[-1]}`" in refused


@pytest.mark.parametrize("path", [(), ("image_space",), ("preprocess",), ("answering",), ("files", 0), ("sources", 0)])
def test_an_unknown_field_is_refused(path: Path) -> None:
    with pytest.raises(BundleError, match="unknown field `colour`"):
        decode(put((*path, "colour"), "red"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("files", 0, "sha256"), "0" * 63, "matching regex"),
        (("files", 0, "sha256"), "A" * 64, "matching regex"),
        (("files", 0, "bytes"), -1, ">= 0"),
        (("image_space", "id"), "x", "matching regex"),
        (("text_space", "dim"), 0, ">= 1"),
        (("preprocess", "height"), 15, ">= 16"),
        (("preprocess", "width"), 4097, "<= 4096"),
        (("preprocess", "resize"), "nearest", "enum value 'nearest'"),
        (("answering", "abstain_below"), 1.01, "<= 1.0"),
        (("answering", "abstain_below"), -0.01, ">= 0.0"),
        (("flavors", "cpu-u8", "image", "backend"), "pickle", "enum value 'pickle'"),
        (("flavors", "cpu-u8", "image", "graph_optimization"), "max", "enum value 'max'"),
        (("parity", "cpu-u8", "images"), 0, ">= 1"),
        (("parity", "cpu-u8", "cosine_mean"), None, "null"),
        (("calibration_sha256",), "", "matching regex"),
        (("schema_version",), 2, "schema 2"),
        (("schema_version",), 0, "schema 0"),
        (("schema_version",), "1", "schema_version"),
        (("schema_version",), None, "schema_version"),
    ],
)
def test_values_out_of_range_are_refused(path: Path, value: object, says: str) -> None:
    with pytest.raises(BundleError) as refused:
        decode(put(path, value))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\x80\x04\x95pickle",
        b'{"schema_version": 1, "name": "\xff"}',
        b'{"x": ' + b"[" * 100_000,
        b'{"schema_version": 1, "files": ' + b"[" * 100_000,
        b'{"schema_version": NaN}',
    ],
    ids=range(10),
)
def test_what_is_no_manifest_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(BundleError, match="bundle 'b': expected") as refused:
        decode_manifest(data, "bundle 'b'")
    assert "\n" not in str(refused.value)


def test_a_newer_manifest_is_refused_for_its_version_and_not_for_its_fields() -> None:
    newer = {**put(("schema_version",), 2), "new": "field"}
    with pytest.raises(BundleError, match=r"expected manifest schema 1, got schema 2; export it again"):
        decode(newer)


def test_a_flavour_that_is_not_there_is_named_with_those_that_are(manifest: Manifest) -> None:
    assert manifest.flavor("cpu-u8") == manifest.flavors["cpu-u8"]
    with pytest.raises(BundleError, match="expected flavour trt-s8, got cpu-u8"):
        manifest.flavor("trt-s8")


def test_required_files_are_all_that_the_manifest_points_to(manifest: Manifest) -> None:
    listed = {record.path for record in manifest.files}
    assert manifest.required_files() <= listed
    elsewhere = msgspec.structs.replace(manifest, tokenizer="words.json", recipe="how.toml")
    assert {"words.json", "how.toml"} <= elsewhere.required_files()
    assert manifest.tokenizer not in elsewhere.required_files()


# -- optional parts ---------------------------------------------------------------------------------------------------

FUSION = {"tokenizer": "words.json", "entries": 5, "longest": 24, "abstain_above": 0.5, "layers": 2, "heads": 4,
          "width": 128}  # fmt: skip
MODELS = {"prefill": {"file": "models/prefill.onnx"}, "step": {"file": "models/step.onnx"}}


def with_fusion(spec: object = FUSION, models: object = MODELS) -> dict[str, Any]:
    plain = put(("flavors", "cpu-u8", "fusion"), models)
    return plain | {"fusion": spec}


def test_a_bundle_from_before_the_fusion_decoder_has_none() -> None:
    manifest = decode(STARTER_JSON)
    assert (manifest.fusion, manifest.flavor("cpu-u8").fusion, manifest.meaning_space) == (None, None, None)


def test_a_decoders_files_are_required() -> None:
    manifest = decode(with_fusion())
    assert decode(json.loads(encode_manifest(manifest))) == manifest
    assert {"words.json", "models/prefill.onnx", "models/step.onnx"} <= manifest.required_files()
    assert manifest.tokenizer in manifest.required_files()


def test_not_every_flavour_needs_a_decoder() -> None:
    plain = with_fusion()
    plain["flavors"]["trt-s8"] = STARTER_JSON["flavors"]["cpu-u8"]
    assert decode(plain).flavor("trt-s8").fusion is None


@pytest.mark.parametrize(
    ("spec", "models", "says"),
    [
        (
            None,
            MODELS,
            "expected a valid manifest.json: `fusion` for its models, got none, with models in flavour cpu-u8",
        ),
        (FUSION, None, "expected a valid manifest.json: `fusion` with models, got none in flavour cpu-u8"),
        (FUSION | {"heads": 3}, MODELS, "`fusion.width` that its heads share, got 128 for 3 heads"),
        (FUSION | {"longest": 0}, MODELS, "$.fusion.longest"),
        (FUSION | {"abstain_above": 1.5}, MODELS, "$.fusion.abstain_above"),
        (FUSION, {"prefill": MODELS["prefill"]}, "missing required field `step`"),
    ],
    ids=range(6),
)
def test_a_decoder_of_which_a_part_is_missing_or_wrong_is_refused(spec: object, models: object, says: str) -> None:
    with pytest.raises(BundleError) as refused:
        decode(with_fusion(spec, models))
    assert says in str(refused.value)


def test_meanings_have_the_dimensions_of_texts() -> None:
    dim = STARTER_JSON["text_space"]["dim"]
    right = put(("meaning_space",), {"id": "0" * 64, "dim": dim})
    assert decode(right).meaning_space is not None
    with pytest.raises(BundleError, match=f"the {dim} dimensions of `text_space`, got {dim + 1}"):
        decode(put(("meaning_space",), {"id": "0" * 64, "dim": dim + 1}))


# -- space ids --------------------------------------------------------------------------------------------------------

WEIGHTS = {"a": b"1234", "b": b"56"}
DEFINITION: dict[str, object] = {"output": "embedding", "preprocess": {"height": 224, "width": 224}}


def test_a_space_id_is_fixed() -> None:
    """Memories carry it: a change of the formula would orphan every one of them."""
    assert space_id(WEIGHTS, DEFINITION) == "3eafe4e3cf999261f5210714e171c2f7aa8c1156bf0e37340fbfa891ed7f18be"


def test_a_space_id_does_not_depend_on_order() -> None:
    again = space_id(dict(reversed(WEIGHTS.items())), dict(reversed(DEFINITION.items())))
    assert again == space_id(WEIGHTS, DEFINITION)


@pytest.mark.parametrize(
    "change",
    [
        lambda w, d: (w | {"a": b"1235"}, d),
        lambda w, d: ({"a": b"12", "b": b"3456"}, d),
        lambda w, d: ({"a1": b"234", "b": b"56"}, d),
        lambda w, d: ({"b": b"1234", "a": b"56"}, d),
        lambda w, d: ({"a": b"1234"}, d),
        lambda w, d: (w | {"c": b""}, d),
        lambda w, d: (w, d | {"output": "tokens"}),
    ],
)
def test_a_space_id_changes_with_anything_that_makes_vectors_incomparable(
    change: Callable[[dict[str, bytes], dict[str, object]], tuple[dict[str, bytes], dict[str, object]]],
) -> None:
    assert space_id(*change(WEIGHTS, DEFINITION)) != space_id(WEIGHTS, DEFINITION)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode_manifest(data, "here")
