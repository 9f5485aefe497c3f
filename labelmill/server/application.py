"""The application: its resources under `/v1`, the health checks, and what every answer has in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel

from jobs.settings import Settings
from labelmill.server import batches, files
from labelmill.server.access import Clients
from labelmill.server.problems import add_handlers, problem

#: Requests that are answered at the same time. Each may use a connection to the ledger.
_THREADS: Final = 16

#: Maximum bytes of a request's body, apart from uploads.
_MAX_BODY_BYTES: Final = 1024 * 1024

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}

#: What a browser may do with an answer: nothing. `/docs` loads its own scripts.
_POLICY: Final = "default-src 'none'; frame-ancestors 'none'; sandbox"


class Health(BaseModel):
    """The answer of a health check."""

    status: str


def create_app(settings: Settings) -> FastAPI:
    """Return the application for these settings."""
    clients = Clients(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        yield
        clients.close()

    app = FastAPI(
        title="Labelmill",
        version=version("labelmill"),
        summary="Bulk image classification. The resources are those of OpenAI's Batch API.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.clients = clients
    add_handlers(app)
    app.middleware("http")(_with_common_rules)
    v1 = APIRouter(prefix="/v1")
    v1.include_router(files.router)
    v1.include_router(batches.router)
    app.include_router(v1)

    @app.get("/healthz", tags=["health"])
    def healthz() -> Health:
        """Answer if the process can answer."""
        return Health(status="ok")

    @app.get("/readyz", tags=["health"], responses={503: {}})
    def readyz() -> Health:
        """Answer if the ledger can be reached."""
        with clients.borrowed() as client:
            client.ledger.check()
        return Health(status="ok")

    return app


async def _with_common_rules(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Limit a request's body, and add the headers that every answer has."""
    is_upload = request.method == "POST" and request.url.path == "/v1/files"
    length = request.headers.get("content-length")
    if not is_upload and request.method in ("POST", "PUT", "PATCH"):
        if length is None or not length.isdecimal():
            if "transfer-encoding" in request.headers:
                detail = "Send the length of the body: `Content-Length`."
                return problem(HTTPStatus.LENGTH_REQUIRED, "length_required", detail)
        elif int(length) > _MAX_BODY_BYTES:
            detail = f"The body is larger than {_MAX_BODY_BYTES:,} bytes."
            return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)
    response = await call_next(request)
    response.headers.update(_HEADERS)
    if request.url.path != "/docs":
        response.headers["Content-Security-Policy"] = _POLICY
    return response
