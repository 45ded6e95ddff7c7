"""What ``edge-ravlm doctor`` finds out about a machine."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edge_ravlm.errors import EdgeRavlmError

PACKAGES = ("edge-ravlm", "numpy", "onnxruntime", "opencv-python-headless", "tokenizers", "usearch")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool = True
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything that the runtime needs; each finding says what to do if it is not well."""
    looks: tuple[Callable[[], Finding], ...] = (_python, _packages, _cpu, _video, _disk, _starter, _answer)
    return [_careful(look) for look in looks]


def _careful(look: Callable[[], Finding]) -> Finding:
    name = look.__name__.strip("_")
    try:
        return look()
    except EdgeRavlmError as error:
        return Finding(name, str(error), ok=False, advice=error.do)
    except Exception as error:  # whatever is broken here, the other findings are wanted too
        found = f"{type(error).__name__}: {error}"
        return Finding(name, found, ok=False, advice="reinstall edge-ravlm into a fresh environment")


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Finding:
    return Finding("packages", ", ".join(f"{name} {version(name)}" for name in PACKAGES))


def _cpu() -> Finding:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    integer = sorted(flags & {"avx2", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"})
    return Finding("cpu", f"{os.cpu_count()} cores, integer kernels: {', '.join(integer) or 'none found'}")


def _video() -> Finding:
    import cv2

    inside = re.search(r"GStreamer:\s+YES", cv2.getBuildInformation())
    outside = shutil.which("gst-launch-1.0")
    gstreamer = "in OpenCV" if inside else "through gst-launch-1.0" if outside else "no"
    return Finding(
        "video", f"OpenCV {cv2.__version__}, files, webcams and network streams: yes; GStreamer: {gstreamer}"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    enough = free > 200_000_000
    return Finding("disk", f"{free / 1e9:.1f} GB free here", enough, "" if enough else "free some space")


def _starter() -> Finding:
    from edge_ravlm.bundle import STARTER, Bundle

    bundle = Bundle.open(STARTER)
    return Finding("starter", f"{bundle.verify() / 1e6:.1f} MB verified, SHA-256 {bundle.sha256[:12]}…")


def _answer() -> Finding:
    """The main job once, on two flat pictures."""
    import numpy as np

    from edge_ravlm.runtime.opening import load

    dark, light = np.full((240, 320, 3), 20, np.uint8), np.full((240, 320, 3), 230, np.uint8)
    with load() as ravlm:
        ravlm.remember(dark, "the lamp is off")
        ravlm.remember(light, "the lamp is on")
        answer = ravlm.ask(light, "is the lamp on?", budget_ms=1000)
    ok = answer.text == "the lamp is on"
    found = f"'{answer.text}' in {answer.latency.total_ms:.1f} ms"
    return Finding("answer", found, ok, "" if ok else "report this with the output of `edge-ravlm doctor --json`")
