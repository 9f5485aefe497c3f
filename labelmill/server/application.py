"""The application: its resources under `/v1`, the health checks, and what every answer has in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Final

import anyio.to_thread
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings
from labelmill.client.migrating import open_ledger
from labelmill.server import (
    batches,
    classifications,
    datasets,
    events,
    files,
    images,
    models,
    results,
    webhooks,
)
from labelmill.server.access import Keys
from labelmill.server.description import DescribedApp, operation_id
from labelmill.server.events import Readings
from labelmill.server.guards import Guard, Limits
from labelmill.server.metrics import Measured
from labelmill.server.problems import add_handlers, refuse_unknown_parameters
from labelmill.server.reading import Reading
from labelmill.server.usage import Usage

#: Threads that answer requests. Each may use a connection to the ledger, and so do keys and health.
_THREADS: Final = 24

#: The headers of every answer that has no others.
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    # What a browser may do with an answer: nothing.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


class Start(BaseModel):
    """Where things are."""

    name: str = Field(description="always `Labelmill`")
    version: str = Field(description="the server's version")
    documentation: str = Field(description="the path of the OpenAPI description")
    resources: list[str] = Field(description="the paths that can be read without knowing an id")


class Health(BaseModel):
    """The answer of a health check."""

    status: str = Field(description="always `ok`")


def create_app(
    settings: Settings,
    is_stopping: Callable[[], bool] = lambda: False,
    add_pages: Callable[[FastAPI], None] = lambda _app: None,
) -> Measured:
    """Return the application for these settings. Streams end when `is_stopping` returns true.

    `add_pages` adds what people see in a browser.

    Raises LedgerNotReady, Unavailable.
    """
    ledger = open_ledger(settings)
    usage = Usage(ledger)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        writing = asyncio.create_task(usage.write_regularly())
        yield
        writing.cancel()
        await usage.write()
        ledger.close()

    app = DescribedApp(
        title="Labelmill",
        version=version("labelmill"),
        summary="Bulk image classification. The resources are those of OpenAI's Batch API.",
        lifespan=lifespan,
        dependencies=[Depends(refuse_unknown_parameters)],
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    app.state.settings, app.state.ledger = settings, ledger
    app.state.limits, app.state.keys = Limits(settings), Keys(ledger)
    app.state.is_stopping = is_stopping
    app.state.readings = Readings(lambda *which: batches.read_batch(ledger, *which))
    add_handlers(app)
    # Not in a router of their own: FastAPI would compare each request with one more level.
    for resource in (files, batches, results, events, classifications, images, models, datasets, webhooks):
        app.include_router(resource.router, prefix="/v1")

    @app.get("/", tags=["start"])
    async def start() -> Start:
        """Say where things are. Needs no key."""
        readable = sorted(path for path, found in app.openapi()["paths"].items() if "get" in found)
        return Start(
            name=app.title,
            version=app.version,
            documentation=str(app.openapi_url),
            resources=[path for path in readable if "{" not in path and path != "/"],
        )

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Answer if the process can answer."""
        return Health(status="ok")

    add_pages(app)
    checking = Reading(ledger.check, own_thread=True)

    @app.get("/readyz", tags=["health"], responses={HTTPStatus.SERVICE_UNAVAILABLE: {}})
    async def readyz() -> Health:
        """Answer if the ledger can be reached."""
        await checking.latest()
        return Health(status="ok")

    guarded: ASGIApp = Guard(app, app.state.limits, app.state.keys, settings.api_hosts)
    if settings.api_origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.api_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Range"],
            expose_headers=["Accept-Ranges", "Content-Range", "ETag", "Link", "Location", "Retry-After"],
        )
    return Measured(_WithHeaders(guarded, usage))


class _WithHeaders:
    """Adds the headers that every answer has, and notes its status.

    Starlette's own base class for this ends a stream that fails halfway as if it were complete.
    """

    def __init__(self, app: ASGIApp, usage: Usage) -> None:
        self._app = app
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                self._usage.note(scope, message["status"])
            await send(message)

        await self._app(scope, receive, send_with_headers)
