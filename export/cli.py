"""The export half's commands."""

from __future__ import annotations

import cyclopts

app = cyclopts.App()
