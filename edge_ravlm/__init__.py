"""EdgeRAVLM: retrieval-augmented vision-language models on edge devices. Show it, name it, ask it.

::

    import edge_ravlm

    ravlm = edge_ravlm.load("starter", memory="home.memory", budget_ms=40)
    ravlm.remember(frame, "the garage door is open")
    answer = ravlm.ask(frame, "is the garage door open?")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_ravlm.bundle import Bundle
    from edge_ravlm.errors import EdgeRavlmError
    from edge_ravlm.frames import Frame, Region, read_image
    from edge_ravlm.runtime.answer import Answer, Evidence, Latency, Level
    from edge_ravlm.runtime.camera import LiveCapture, open_camera
    from edge_ravlm.runtime.memory import Memory, Where
    from edge_ravlm.runtime.opening import load
    from edge_ravlm.runtime.pipeline import Ravlm

_HOMES = {
    "Answer": "edge_ravlm.runtime.answer",
    "Bundle": "edge_ravlm.bundle",
    "EdgeRavlmError": "edge_ravlm.errors",
    "Evidence": "edge_ravlm.runtime.answer",
    "Frame": "edge_ravlm.frames",
    "Latency": "edge_ravlm.runtime.answer",
    "Level": "edge_ravlm.runtime.answer",
    "LiveCapture": "edge_ravlm.runtime.camera",
    "Memory": "edge_ravlm.runtime.memory",
    "Ravlm": "edge_ravlm.runtime.pipeline",
    "Region": "edge_ravlm.frames",
    "Where": "edge_ravlm.runtime.memory",
    "load": "edge_ravlm.runtime.opening",
    "open_camera": "edge_ravlm.runtime.camera",
    "read_image": "edge_ravlm.frames",
}

__all__ = [
    "Answer",
    "Bundle",
    "EdgeRavlmError",
    "Evidence",
    "Frame",
    "Latency",
    "Level",
    "LiveCapture",
    "Memory",
    "Ravlm",
    "Region",
    "Where",
    "load",
    "open_camera",
    "read_image",
]


def __getattr__(name: str) -> Any:
    """Import on first use: `import edge_ravlm` alone loads neither OpenCV nor a model runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_ravlm' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
