"""The desk over HTTP: routes, what may come in, and errors as one sentence each."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from edge_ravlm.errors import CameraError, EdgeRavlmError, MemoryDamaged, MemoryFault, StorageError, UsageError
from edge_ravlm.runtime.serving.board import Row
from edge_ravlm.runtime.serving.desk import Desk
from edge_ravlm.runtime.serving.guard import Guard

PAGE = Path(__file__).with_name("page")

HEARTBEAT_S = 10.0
"""Between signs of life to those who wait for events: else nobody would notice that they left."""

_WAITING = 256
"""Events that wait for one reader; the oldest give way."""

_POLICY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_STATUS: tuple[tuple[type[EdgeRavlmError], int], ...] = (
    (CameraError, 503),
    (StorageError, 500),
    (MemoryDamaged, 500),
    (MemoryFault, 404),
    (EdgeRavlmError, 400),
)

_NO_OBJECT = "body: expected a JSON object, sent as Content-Type: application/json, got none; see /api/openapi.json."

Tag = Annotated[str, Field(strict=True)] | Annotated[bool, Field(strict=True)] | int | float


class _Shown(BaseModel):
    """A picture: what a camera shows now, or an image of the caller's.

    Attributes:
        camera: its name.
        image: a JPEG, PNG, BMP, TIFF or WebP in base64.
        region: ``x0,y0,x1,y1`` or ``NAME=…`` in pixels of the camera's frames; the whole picture without it.
        tags: to remember with it, or that memories must have.
    """

    model_config = ConfigDict(extra="forbid")

    camera: str | None = None
    image: str | None = None
    region: str | None = None
    tags: dict[str, Tag] = {}

    @property
    def picture(self) -> dict[str, Any]:
        """For the desk."""
        return {"camera": self.camera, "image": _decoded(self.image), "region": self.region, "tags": self.tags}


class Question(_Shown):
    """What is asked; see ``Ravlm.ask``."""

    question: str
    budget_ms: float | None = None
    generate: bool = False
    hops: int = 1


class Lesson(_Shown):
    """What is taught; see ``Ravlm.remember``."""

    text: str
    answer: str | None = None


def make(desk: Desk, guard: Guard) -> FastAPI:
    """The routes.

    Args:
        desk: what answers.
        guard: who may come in.
    """
    # Its pages of documentation load scripts from elsewhere, which a device at home has no business with.
    api = FastAPI(title="EdgeRAVLM", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    api.add_middleware(guard.middleware)
    _add_page(api)
    _add_routes(api, desk)

    @api.exception_handler(EdgeRavlmError)
    def failed(_: Request, error: EdgeRavlmError) -> Response:
        status = next(code for kind, code in _STATUS if isinstance(error, kind))
        return _error(str(error), status)

    @api.exception_handler(RequestValidationError)
    def unusable(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        if not where or first["type"] == "json_invalid":
            return _error(_NO_OBJECT, 400)
        return _error(f"{where}: {first['msg']}; see /api/openapi.json.", 400)

    @api.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # the framework's, for a body that it cannot read
            return _error(_NO_OBJECT, 400)
        what = f"{request.method} {request.url.path}"
        found = _error(
            f"{what}: expected a request that is known here, got another; see /api/openapi.json.", error.status_code
        )
        found.headers.update(error.headers or {})
        return found

    return api


def _add_page(api: FastAPI) -> None:
    def page(name: str) -> FileResponse:
        return FileResponse(PAGE / name, headers={**_POLICY, "Cache-Control": "no-cache"})

    api.add_api_route("/", lambda: page("index.html"), include_in_schema=False)
    api.add_api_route("/page.js", lambda: page("page.js"), include_in_schema=False)
    api.add_api_route("/page.css", lambda: page("page.css"), include_in_schema=False)


def _add_routes(api: FastAPI, desk: Desk) -> None:
    # Plain functions run in threads of the framework's: what takes time holds nobody else up.

    @api.get("/api/state")
    def state() -> Response:
        """Cameras, watches with their last answers, and the memory."""
        return _json(desk.state())

    @api.get("/api/cameras/{camera}/frame.jpg")
    def frame(camera: str) -> Response:
        """What a camera shows now."""
        return _jpeg(desk.picture(camera), "no-store")

    @api.post("/api/ask")
    def ask(question: Question) -> Response:
        """Answer a question about what a camera shows now, or about an image."""
        how: dict[str, Any] = {"budget_ms": question.budget_ms, "generate": question.generate, "hops": question.hops}
        return _json(desk.ask(question.question, **question.picture, **how))

    @api.get("/api/memories")
    def memories(text: str = "", limit: int = 50) -> Response:
        """The newest memories, or those nearest to a text."""
        return _json(desk.memories(text, limit))

    @api.post("/api/memories", status_code=201)
    def teach(lesson: Lesson) -> Response:
        """Remember what a camera shows now, or an image, with a sentence."""
        return _json({"id": desk.teach(lesson.text, **lesson.picture, answer=lesson.answer)}, 201)

    @api.delete("/api/memories/{id_}")
    def forget(id_: int) -> Response:
        """Forget one memory."""
        desk.forget(id_)
        return _json({"removed": 1})

    @api.get("/api/memories/{id_}/thumbnail.jpg")
    def thumbnail(id_: int) -> Response:
        """A memory's picture."""
        found = desk.thumbnail(id_)
        if found is None:
            return _error(f"entry {id_}: expected one with a picture, got a text alone; look at its text.", 404)
        return _jpeg(found, "private, max-age=60")

    @api.get("/api/events")
    async def events() -> Response:
        """Events as they happen (server-sent events), after those of the last minutes."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second for a proxy such as nginx
        return StreamingResponse(_told(desk), media_type="text/event-stream", headers=headers)


async def _told(desk: Desk) -> AsyncIterator[str]:
    loop, waiting = asyncio.get_running_loop(), asyncio.Queue[Row | None](_WAITING)

    def put(row: Row | None) -> None:
        if waiting.full():
            waiting.get_nowait()
        waiting.put_nowait(row)

    def hear(row: Row | None) -> None:  # in a thread of the app
        if not loop.is_closed():
            loop.call_soon_threadsafe(put, row)

    with desk.board.heard(hear):
        for row in desk.board.events():
            yield _line(row)
        while True:
            try:
                told = await asyncio.wait_for(waiting.get(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                yield ": still here\n\n"
                continue
            if told is None:
                return
            yield _line(told)


def _line(row: Row) -> str:
    return f"data: {msgspec.json.encode(row, enc_hook=str).decode()}\n\n"


def _error(sentence: str, status: int) -> Response:
    # It may repeat what the caller wrote, and that may be half of a surrogate pair.
    return _json({"error": sentence.encode(errors="replace").decode()}, status)


def _json(value: Any, status: int = 200) -> Response:
    content = msgspec.json.encode(value, enc_hook=str)
    return Response(content, status, {"Cache-Control": "no-store"}, "application/json")


def _jpeg(content: bytes, caching: str) -> Response:
    return Response(content, 200, {"Cache-Control": caching, **_POLICY}, "image/jpeg")


def _decoded(image: str | None) -> bytes | None:
    if image is None:
        return None
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("image", expected="base64", got="other characters", do="encode the file's bytes") from None
