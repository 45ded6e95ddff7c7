"""A peer's process, from the benchmark's side."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from edge_ravlm.errors import EdgeRavlmError
from peers.environments import BENCHMARKS, variables
from peers.protocol import Answered, Ask, Job, Load, Quit, Ready

_PATIENCE_S = 10.0
"""How long one may take to quit."""

T = TypeVar("T", Ready, Answered)


class PeerProcess:
    """A worker that was told to load its peer; several can load at once.

    Args:
        name: of the peer.
        opener: ``module:function`` that makes it from a ``Job``.
        python: the interpreter it runs in.
        job: what it is taught.
        packages: whose versions it is to tell.
    """

    def __init__(self, name: str, opener: str, python: Path, job: Job, packages: tuple[str, ...] = ()) -> None:
        self.name = name
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [str(python), "-m", "peers.worker", opener],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=variables(job.threads),
            cwd=BENCHMARKS,  # before all paths to modules
        )
        self._send(Load(job, packages))

    def ready(self) -> Ready:
        """Wait until it is taught; raises EdgeRavlmError when it fails."""
        return self._receive(Ready)

    def ask(self, frame: int, question: str) -> Answered:
        """Its answer to a question about a shown picture; raises EdgeRavlmError when it died."""
        self._send(Ask(frame, question))
        return self._receive(Answered)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._send(Quit())
                self._process.wait(_PATIENCE_S)
        except (EdgeRavlmError, subprocess.TimeoutExpired):
            pass  # it has answered all that it was asked
        finally:
            self._process.kill()
            self._process.communicate()
            self._said.close()

    def _send(self, message: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _receive(self, kind: type[T]) -> T:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return msgspec.json.decode(line, type=kind)

    def _died(self) -> EdgeRavlmError:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return EdgeRavlmError(
            f"peer '{self.name}'",
            expected="an answer",
            got=lines[-1].rstrip(".") if lines else f"exit code {code}",
            do="run it alone with --only, or leave it out",
        )
