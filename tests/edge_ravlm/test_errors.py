"""Errors: one tree, one sentence each, and they survive the way home from a worker process."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from edge_ravlm import errors
from edge_ravlm.errors import EdgeRavlmError, MissingExtra, UsageError, needs_extra

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EdgeRavlmError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_one_sentence_and_pickles(kind: type[EdgeRavlmError]) -> None:
    error = kind("frame", expected="pixels", got="none", do="check the camera")
    assert str(error) == "frame: expected pixels, got none; check the camera."
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.do) == (kind, str(error), "check the camera")
    assert error.exit_code == (2 if kind is UsageError else 1)


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = re.findall(r"^    [│├└─ ]*(\w+)  ", errors.__doc__ or "", re.MULTILINE)
    assert sorted(drawn) == sorted(kind.__name__ for kind in KINDS)


def test_a_missing_package_becomes_the_extra_to_install() -> None:
    says = r'^package no_such_package: .* pip install "\.\[export\]" in the checkout of EdgeRAVLM\.$'
    with pytest.raises(MissingExtra, match=says), needs_extra("export"):
        import no_such_package.inside  # noqa: F401 - missing on purpose


def test_a_mistake_of_our_own_is_not_called_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"edge_ravlm\.no_such_module"), needs_extra("export"):
        import edge_ravlm.no_such_module  # noqa: F401 - missing on purpose
    with pytest.raises(ImportError, match="no_such_name"), needs_extra("export"):
        from json import no_such_name  # noqa: F401 - missing on purpose
