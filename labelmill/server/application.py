"""The application: its resources under `/v1`, the health checks, and what every answer has in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings
from labelmill.migrating import open_ledger
from labelmill.server import batches, classifications, events, files, images, models, results
from labelmill.server.events import Streams
from labelmill.server.problems import add_handlers, problem

#: Requests that are answered at the same time. Each may use a connection to the ledger.
_THREADS: Final = 16

#: Maximum bytes of a request's body, apart from uploads.
_MAX_BODY_BYTES: Final = 1024 * 1024

#: These take files, and limit their bodies themselves.
_UPLOADS: Final = frozenset(("/v1/files", "/v1/classifications"))

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

#: What a browser may do with an answer: nothing.
_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; sandbox"


class Health(BaseModel):
    """The answer of a health check."""

    status: str


def create_app(settings: Settings, is_stopping: Callable[[], bool] = lambda: False) -> ASGIApp:
    """Return the application for these settings. When `is_stopping` is true, endless answers end.

    Raises LedgerNotReady, Unavailable.
    """
    ledger = open_ledger(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield
        ledger.close()

    app = FastAPI(
        title="Labelmill",
        version=version("labelmill"),
        summary="Bulk image classification. The resources are those of OpenAI's Batch API.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.settings, app.state.ledger = settings, ledger
    app.state.streams = Streams(ledger, is_stopping)
    add_handlers(app)
    v1 = APIRouter(prefix="/v1")
    for resource in (files, batches, results, events, classifications, images, models):
        v1.include_router(resource.router)
    app.include_router(v1)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Answer if the process can answer."""
        return Health(status="ok")

    @app.get("/readyz", tags=["health"], responses={503: {}})
    def readyz() -> Health:
        """Answer if the ledger can be reached."""
        ledger.check()
        return Health(status="ok")

    return _CommonRules(app)


class _CommonRules:
    """Limits the body of requests, and adds the headers that every answer has.

    Starlette's own base class for this ends a stream that fails halfway as if it were complete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if scope["path"] != "/docs":  # it loads its own scripts
                    headers["Content-Security-Policy"] = _POLICY
            await send(message)

        await (_refusal(Request(scope)) or self._app)(scope, receive, send_with_headers)


def _refusal(request: Request) -> Response | None:
    """Return the answer to a request whose body is too large, or of unknown length; None to go on."""
    if request.method not in ("POST", "PUT", "PATCH") or request.url.path in _UPLOADS:
        return None
    length = request.headers.get("content-length", "")
    # Beside a Transfer-Encoding, the length does not count.
    if length.isdecimal() and "transfer-encoding" not in request.headers:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if int(length) and kind != "application/json":
            detail = "Send the body as `Content-Type: application/json`."
            return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
        if int(length) <= _MAX_BODY_BYTES:
            return None
        detail = f"The body is larger than {_MAX_BODY_BYTES:,} bytes."
        return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)
    if "transfer-encoding" not in request.headers:
        return None
    detail = "Send the length of the body: `Content-Length`."
    return problem(HTTPStatus.LENGTH_REQUIRED, "length_required", detail)
