"""`import edge_ravlm`: every name is there, and nothing heavy is loaded before it is used."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import edge_ravlm

HEAVY = ("cv2", "numpy", "onnxruntime", "usearch", "tokenizers", "torch", "onnx", "rich", "cyclopts")


def test_all_names_the_whole_face() -> None:
    assert edge_ravlm.__all__ == sorted(edge_ravlm._HOMES)
    assert dir(edge_ravlm) == edge_ravlm.__all__


def test_type_checkers_see_the_same_names_from_the_same_homes() -> None:
    tree = ast.parse(inspect.getsource(edge_ravlm))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == edge_ravlm._HOMES


@pytest.mark.parametrize("name", edge_ravlm.__all__)
def test_every_name_is_there_documented_and_the_same_each_time(name: str) -> None:
    value = getattr(edge_ravlm, name)
    assert value is getattr(edge_ravlm, name)
    assert value.__name__ == name
    assert value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edge_ravlm' has no attribute 'lode'"):
        edge_ravlm.lode  # noqa: B018 - looking it up is the test
    with pytest.raises(ImportError, match="lode"):
        from edge_ravlm import lode  # noqa: F401 - missing on purpose


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import edge_ravlm, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    root = Path(edge_ravlm.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)).isdisjoint(HEAVY)


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(edge_ravlm.__file__).with_name("py.typed").is_file()
