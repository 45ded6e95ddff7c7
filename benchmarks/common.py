"""What every benchmark says beside its figures: machine, libraries, bundle and how good that bundle is."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_ravlm.bundle import Bundle

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
"""Instruction sets that decide how fast INT8 and FP32 run."""

LIBRARIES = ("numpy", "onnxruntime", "opencv-python-headless", "tokenizers", "torch", "usearch")


def setting(bundle: Bundle, flavor: str, threads: int) -> dict[str, Any]:
    """Where and with what the figures were taken; `quality` is what the gate measured with it."""
    return {
        "machine": machine(),
        "threads": threads,
        "precision": f"INT8 ({flavor})",
        "libraries": libraries(),
        "bundle_sha256": bundle.sha256,
        "quality": msgspec.to_builtins(bundle.manifest.parity.get(flavor)),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }


def libraries() -> dict[str, str | None]:
    """Versions of what does the work; None for what is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
