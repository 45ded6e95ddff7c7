"""The manifest that tests of the ground floor start from."""

from __future__ import annotations

import pytest

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.manifest import Manifest


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    """The starter's own; tests change it with `msgspec.structs.replace`."""
    return Bundle.open(STARTER).manifest
