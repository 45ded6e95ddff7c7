"""Bundles that tests of both halves use."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_ravlm.bundle import Bundle, write_bundle


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter as it would be without a decoder and without a head that puts pictures among texts."""
    import onnx

    from edge_ravlm.export.onnx_graph import prune

    starter = Bundle.open("starter")
    manifest, flavor = starter.manifest, starter.manifest.flavor("cpu-u8")
    words = () if manifest.fusion is None else (manifest.fusion.tokenizer,)
    models = () if flavor.fusion is None else (flavor.fusion.prefill.file, flavor.fusion.step.file)
    contents = {one.path: starter.read(one.path) for one in manifest.files if one.path not in {*words, *models}}
    model = onnx.load_from_string(contents[flavor.image.file])
    for output in [output for output in model.graph.output if output.name == "meaning"]:
        model.graph.output.remove(output)
    prune(model.graph)
    contents[flavor.image.file] = model.SerializeToString()
    bare = msgspec.structs.replace(flavor, fusion=None)
    changed = msgspec.structs.replace(manifest, flavors={"cpu-u8": bare}, fusion=None, meaning_space=None)
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    write_bundle(folder, changed, contents)
    return folder


@pytest.fixture(scope="session")
def plain(plain_folder: Path) -> Bundle:
    """The same, open."""
    return Bundle.open(plain_folder)
