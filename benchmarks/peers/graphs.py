"""ONNX models of peers, exported once and kept."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from edge_ravlm.bundle import Bundle
from edge_ravlm.console import complain
from edge_ravlm.errors import EdgeRavlmError
from peers.environments import BENCHMARKS, BUILD, interpreter, requirements, variables

_EXPORT = Path(__file__).with_name("export_graphs.py")


def graph(name: str, bundle: Bundle, threads: int) -> Path:
    """The file of a graph of ``export_graphs.py``, made in the environment ``torch`` if it is not there yet.

    Raises:
        EdgeRavlmError: it cannot be exported.
    """
    made_from = (_EXPORT.read_bytes(), requirements("torch").read_bytes(), bundle.sha256.encode())
    file = BUILD / "cache" / f"{name}-{hashlib.sha256(b''.join(made_from)).hexdigest()[:12]}.onnx"
    if not file.exists():
        python = interpreter(requirements("torch"))
        complain(f"graph '{name}': exporting it; this happens once.")
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        done = subprocess.run(
            [str(python), "-m", "peers.export_graphs", name, str(part)],
            env=variables(threads),
            cwd=BENCHMARKS,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EdgeRavlmError(
                f"graph '{name}'",
                expected="it to be exported",
                got=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1].rstrip("."),
                do="leave out the peers that need it with --only",
            )
        part.replace(file)  # whole or not at all
    return file
