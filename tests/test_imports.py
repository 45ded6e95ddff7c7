"""What gets imported: the runtime stays light, and the command line starts without waiting for what it may not use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import edge_ravlm

ROOT = Path(edge_ravlm.__file__).parents[1]
TRAINING = {"torch", "onnx", "onnxscript", "matplotlib", "safetensors", "transformers", "efficientnet_lite_pytorch"}
NVIDIA = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda"}

WHOLE_RUNTIME = """
import json, pkgutil, sys
from importlib import import_module
import edge_ravlm, edge_ravlm.runtime

ground = [m.name for m in pkgutil.iter_modules(edge_ravlm.__path__, "edge_ravlm.") if m.name != "edge_ravlm.export"]
runtime = [m.name for m in pkgutil.walk_packages(edge_ravlm.runtime.__path__, "edge_ravlm.runtime.")]
for name in ground + runtime:
    import_module(name)

import numpy as np
with edge_ravlm.load("starter", threads=1, budget_ms=60_000) as ravlm:
    for shade, word in ((20, "off"), (230, "on")):
        ravlm.remember(np.full((240, 320, 3), shade, np.uint8), f"the lamp is {word}")
    answer = ravlm.ask(np.full((240, 320, 3), 230, np.uint8), "is the lamp on?")
print(json.dumps({"answer": answer.text, "runtime": runtime, "loaded": sorted(sys.modules)}))
"""

COMMAND_LINE = """
import json, sys
from edge_ravlm.cli import run
assert run(["--help"]) == 0
print(json.dumps({"loaded": sorted(sys.modules)}))
"""


def loaded_by(script: str) -> dict[str, Any]:
    """The last line that a process of its own prints."""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_the_whole_runtime_teaches_and_answers_without_torch_onnx_or_export() -> None:
    found = loaded_by(WHOLE_RUNTIME)
    loaded = set(found["loaded"])
    assert found["answer"] == "the lamp is on"
    assert len(found["runtime"]) > 30
    assert set(found["runtime"]) <= loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(TRAINING | NVIDIA)
    assert not {name for name in loaded if name.startswith("edge_ravlm.export")}
    assert loaded.isdisjoint({"runtime", "export"})  # the bare names would be second copies of the modules


def test_help_is_shown_without_opencv_model_runtimes_or_torch() -> None:
    loaded = {name.partition(".")[0] for name in loaded_by(COMMAND_LINE)["loaded"]}
    assert loaded.isdisjoint(TRAINING | {"onnxruntime", "usearch", "tokenizers"})
