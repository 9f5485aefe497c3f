"""The HTTP API together with the pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings
from labelmill.server.application import create_app
from labelmill.server.metrics import Measured
from labelmill.server.problems import PROBLEM_TYPE
from labelmill.web import (
    datasets,
    gallery,
    health,
    home,
    job,
    jobs,
    models,
    new_job,
    review,
    runs,
    sign_in,
    static,
)
from labelmill.web.health import HealthReadings
from labelmill.web.rendering import page
from labelmill.web.sign_in import HOME, SignInNeeded, signed_in

#: The pages that need a key.
_PAGES: Final = tuple(
    each.router for each in (home, jobs, new_job, job, gallery, review, models, runs, datasets, health)
)


def create_site(settings: Settings, is_stopping: Callable[[], bool] = lambda: False) -> Measured:
    """Return the API with the pages. Raises LedgerNotReady, Unavailable."""
    return create_app(settings, is_stopping, _add_pages)


def _add_pages(app: FastAPI) -> None:
    pages = APIRouter(include_in_schema=False, dependencies=[Depends(signed_in)])
    for router in _PAGES:
        pages.include_router(router)
    for each in (static.router, sign_in.router, pages):
        app.include_router(each)
    app.state.health = HealthReadings.of(app.state.settings, app.state.ledger)
    app.state.volume = home.volume_of(app.state.ledger)
    app.add_middleware(_ForBrowsers)

    @app.exception_handler(SignInNeeded)
    async def sign_in_first(request: Request, _error: SignInNeeded) -> RedirectResponse:
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/sign-in?{urlencode({'next': wanted})}", HTTPStatus.SEE_OTHER)


class _ForBrowsers:
    """Answers browsers with pages: the first page at `/`, and a page for each problem. Programs get JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/v1/") or not wants_page(Request(scope)):
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/":
            await RedirectResponse(HOME, HTTPStatus.SEE_OTHER)(scope, receive, send)
            return
        problem: Message | None = None

        async def send_page(message: Message) -> None:
            nonlocal problem
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                problem = message if kind.startswith(PROBLEM_TYPE.encode()) else None
            if problem is None:
                await send(message)
            elif message["type"] == "http.response.body":
                found = json.loads(message["body"])  # problems are sent whole
                answer = page(Request(scope), "problem.html", HTTPStatus(problem["status"]), problem=found)
                await answer(scope, receive, send)

        await self._app(scope, receive, send_page)


def wants_page(request: Request) -> bool:
    """Return whether a browser asks for a page."""
    return "text/html" in request.headers.get("accept", "")
