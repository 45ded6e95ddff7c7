"""An HTTP server beside an app, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_ravlm.errors import DataError, StorageError, UsageError
from edge_ravlm.runtime.serving import api
from edge_ravlm.runtime.serving.desk import Desk
from edge_ravlm.runtime.serving.guard import Guard

LOCAL = "127.0.0.1"

_STARTING_S, _ENDING_S = 10.0, 3.0
_NICE = 1
"""Threads at 0 are those that an app moves before others, see ``watching.process``."""

_SHORTEST = 16

_MOST_CONNECTIONS, _SILENT_S = 100, 20.0
"""At once; before the first byte of a request."""


class Server:
    """Serves a desk from entering to leaving.

    Args:
        desk: what is served.
        host: the address that listens.
        port: 0 takes a free one.
        token: see ``Guard``; addresses that other machines reach need one.

    Attributes:
        url: where the page is, without the token.

    Raises:
        UsageError: an address that others reach, without a token.
        StorageError: the port is taken, or the address is none of this machine.
    """

    def __init__(self, desk: Desk, host: str, port: int, token: str | None) -> None:
        if token is None and host not in (LOCAL, "localhost", "::1"):
            raise UsageError(
                f"host '{host}'",
                expected="a token, as other machines reach this address",
                got="none",
                do="write one into a file and give it with --token-file",
            )
        self._desk = desk
        config = uvicorn.Config(
            api.make(desk, Guard(token)),
            http=_Connection,
            log_level=logging.ERROR,  # that somebody sent what is no HTTP is no news
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        # No daemon, nor are the threads of requests then: Python would end in the middle of what these do in C++.
        self._thread = threading.Thread(target=self._run, name="server", daemon=False)
        self._socket = _bound(host, port)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}/"

    def __enter__(self) -> Server:
        self._thread.start()
        until = time.monotonic() + _STARTING_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # nor is whom the end cuts off
        self._server.should_exit = True
        self._desk.board.close()
        self._thread.join(_ENDING_S)
        self._desk.close()
        self._socket.close()

    def _run(self) -> None:
        # What a browser wants never goes before a camera's answer; the threads of requests are started by this one.
        with suppress(PermissionError):  # the whole process goes behind others already
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        self._server.run([self._socket])


class _Connection(H11Protocol):
    """Closed at once where there are too many, or soon where nothing is asked: each takes a file of the app's."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
            return
        self.timeout_keep_alive_task = self.loop.call_later(_SILENT_S, self.timeout_keep_alive_handler)


def read_token(path: Path) -> str:
    """A file's first line.

    Raises:
        DataError: no such file, or a token that is short or would have to be escaped.
    """
    do = f"write {_SHORTEST} or more letters and digits into it, for instance those of `openssl rand -hex 16`"
    try:
        token = path.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        got = (error.strerror if isinstance(error, OSError) else None) or "no text"
        raise DataError(f"token file '{path}'", expected="a readable file", got=got, do=do) from None
    if not re.fullmatch(rf"[\w-]{{{_SHORTEST},}}", token, re.ASCII):
        got = f"{len(token)} characters" if len(token) < _SHORTEST else "other signs"
        raise DataError(f"token file '{path}'", expected=f"{_SHORTEST} or more letters and digits", got=got, do=do)
    return token


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError, OverflowError) as error:  # UnicodeError: a host that no name can be
        raise StorageError(
            f"port {port} of {host}",
            expected="a free port of this machine",
            got=getattr(error, "strerror", None) or str(error),
            do="choose another --port or --host",
        ) from None
