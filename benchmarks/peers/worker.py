"""The process that a peer lives in: ``python -m peers.worker MODULE:FUNCTION``.

Requests come on stdin, replies go to stdout.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import BinaryIO

import cv2
import msgspec

from edge_ravlm.machine import version
from peers.environments import hide_torchvision
from peers.protocol import Answered, Ask, Job, Load, Peer, Quit, Ready


def serve(open_peer: Callable[[Job], Peer], requests: Iterable[bytes], replies: BinaryIO) -> None:
    """Do what is asked, until told to quit or nobody is there to ask."""

    def reply(message: msgspec.Struct) -> None:
        replies.write(msgspec.json.encode(message) + b"\n")
        replies.flush()

    decode = msgspec.json.Decoder(Load | Ask | Quit).decode
    lines = iter(requests)
    load = decode(next(lines))
    assert isinstance(load, Load)
    cv2.setNumThreads(load.job.threads)
    peer, shown = open_peer(load.job), load.job.stored("shown")
    try:
        reply(Ready({"python": platform.python_version(), **{name: version(name) for name in load.packages}}))
        idle_since = time.process_time()
        for line in lines:
            request = decode(line)
            if not isinstance(request, Ask):
                return
            idle_cpu_ms = (time.process_time() - idle_since) * 1e3
            start = time.perf_counter()
            found = peer.ask(shown[request.frame], request.question)
            ms = (time.perf_counter() - start) * 1e3
            idle_since = time.process_time()
            reply(Answered(ms, idle_cpu_ms, found.text, found.stages_ms))
    finally:
        peer.close()


def main(opener: str) -> None:
    """Serve on stdin and stdout; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    hide_torchvision()
    module, _, function = opener.partition(":")
    serve(getattr(import_module(module), function), sys.stdin.buffer, replies)


if __name__ == "__main__":
    main(*sys.argv[1:])
