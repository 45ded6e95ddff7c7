"""Who may come in: this machine alone, or whoever has the token; and no other page that the same browser shows."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

MOST_BYTES = 32_000_000
"""Of a request's body: a large photo in base64."""

COOKIE = "edge-ravlm"

_SAFE = frozenset({"GET", "HEAD"})
_OWN = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine alone. Another name that leads here is a page's trick to read what is on it (DNS rebinding)."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Decides about requests.

    Args:
        token: that everybody has to show, as ``Authorization: Bearer TOKEN``, or once as ``/?token=TOKEN`` in a
            browser, which gets a cookie for it; None lets in whoever calls this machine by its own name.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    def middleware(self, app: Asgi) -> Asgi:
        """Around an ASGI app."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if self._is_greeting(scope):
                await _answer(send, 303, b"", {"location": "/", "set-cookie": self._cookie()})
                return
            refusal = self._refusal(scope["method"], headers)
            if refusal is not None:
                status, why = refusal
                await _answer(send, status, msgspec.json.encode({"error": why}), {"content-type": "application/json"})
                return
            await app(scope, _limited(receive), send)

        return guarded

    def _refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._token is None:
            if _name(host) not in _OWN:
                return 403, f"host '{host}': expected this machine's own name; open it as 127.0.0.1, or set a token."
        elif not self._knows(headers):
            return 401, "token: expected the server's, got none or another; open /?token=TOKEN, or send it as a bearer."
        if method not in _SAFE and _is_foreign(headers):
            return 403, "request: expected one of this server's own page, got another page's; use the server's page."
        if int(headers.get("content-length") or 0) > MOST_BYTES:
            return 413, f"body: expected at most {MOST_BYTES // 1_000_000} MB; send a smaller picture."
        return None

    def _knows(self, headers: Mapping[str, str]) -> bool:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(shown):
            return True
        # Others that this machine serves set cookies too, also such as a strict parser stops at.
        cookies = (pair.partition("=") for pair in headers.get("cookie", "").split(";"))
        return any(name.strip() == COOKIE and self._is_token(value) for name, _, value in cookies)

    def _is_greeting(self, scope: Scope) -> bool:
        shown = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return scope["path"] == "/" and any(map(self._is_token, shown))

    def _is_token(self, shown: str) -> bool:
        return self._token is not None and hmac.compare_digest(shown.strip().encode(), self._token.encode())

    def _cookie(self) -> str:
        return f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"


def _name(host: str) -> str:
    """A Host header without its port."""
    return host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]


def _is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether another page sends it.

    What browsers say themselves comes first: behind a proxy with another name the origin is not the host.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("none", "same-origin")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host", "")


def _limited(receive: Receive) -> Receive:
    """Takes no more than MOST_BYTES, however they come; then as if the caller had gone."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return message if taken <= MOST_BYTES else {"type": "http.disconnect"}

    return limited


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
