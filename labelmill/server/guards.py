"""Refuse requests that are for another host, too many, too large or too slow, before anything reads them."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Collection
from http import HTTPStatus
from typing import Final

from fastapi.security.utils import get_authorization_scheme_param
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelmill.server.connections import UPLOAD_PATHS
from labelmill.server.limits import Limits
from labelmill.server.problems import ApiError, problem

#: Maximum bytes of the head of a request. Uvicorn has the same limit, but only for one that comes in parts.
MAX_HEAD_BYTES: Final = 16 * 1024

#: Maximum bytes of a request's body, apart from uploads.
_MAX_BODY_BYTES: Final = 1024 * 1024

#: How long such a body may take to arrive.
_BODY_SECONDS: Final = 30.0

#: The header `Host`: an IPv6 address in brackets, or another address or name; and perhaps a port.
_HOST: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")


class Guard:
    """Refuses requests, before the application reads them."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str]) -> None:
        self._app = app
        self._limits = limits
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request if it is refused, otherwise pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(Request(scope))
        except ApiError as error:
            await problem(error.status, error.code, str(error), error.headers)(scope, receive, send)
            return
        await self._app(scope, receive if scope["path"] in UPLOAD_PATHS else _in_time(receive), send)

    def _check(self, request: Request) -> None:
        """Raise ApiError if the request is refused."""
        path = request.scope["path"]  # `request.url` is made from the header `Host`
        head = len(path) + len(request.scope["query_string"])
        if head + sum(len(name) + len(value) for name, value in request.headers.raw) > MAX_HEAD_BYTES:
            detail = f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes."
            raise ApiError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", detail)
        local = (request.scope.get("server") or ("127.0.0.1",))[0]
        check_host(request.headers.get("host", ""), local, self._hosts)
        scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() == "bearer" and path.startswith("/v1/"):
            self._limits.check(address_of(request), secret)
        if request.method in ("POST", "PUT", "PATCH") and path not in UPLOAD_PATHS:
            _check_body(request)


def address_of(request: Request) -> str:
    """Return the client's address; that of the last proxy, unless uvicorn trusts it."""
    return request.client.host if request.client else ""


def check_host(host: str, local: str, names: Collection[str]) -> None:
    """Raise ApiError unless a request for `host` is meant for this server, which it reached at `local`.

    A page can make its own name resolve to this server, and the browser then takes the answers for the
    page's own (DNS rebinding). It cannot do that with an address, nor with `localhost`.
    """
    found = _HOST.fullmatch(host)
    if found is None:
        raise ApiError(HTTPStatus.BAD_REQUEST, "malformed", "Send the header `Host`, with a name or address.")
    name = (found["v6"] or found["name"]).lower()
    if name == "localhost" or name in names:
        return
    try:
        address = ipaddress.ip_address(name)
        if address.is_loopback or not ipaddress.ip_address(local).is_loopback:
            return
    except ValueError:  # a name
        pass
    raise ApiError(
        HTTPStatus.MISDIRECTED_REQUEST,
        "misdirected",
        f"This server is not {name}: LABELMILL_API_HOSTS must have the names under which it is served.",
    )


def _check_body(request: Request) -> None:
    """Raise ApiError if the body is too large, of unknown length, or not JSON."""
    length = request.headers.get("content-length", "")
    # With a Transfer-Encoding, the length does not count.
    if length.isdecimal() and "transfer-encoding" not in request.headers:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if int(length) and kind != "application/json":
            detail = "Send the body as `Content-Type: application/json`."
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
        if int(length) > _MAX_BODY_BYTES:
            detail = f"The body is larger than {_MAX_BODY_BYTES:,} bytes."
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)
    elif "transfer-encoding" in request.headers:
        detail = "Send the length of the body: `Content-Length`."
        raise ApiError(HTTPStatus.LENGTH_REQUIRED, "length_required", detail)


def _in_time(receive: Receive) -> Receive:
    """Return `receive` with a deadline: it raises HTTPException if the body does not arrive in time."""
    deadline = asyncio.get_running_loop().time() + _BODY_SECONDS
    is_complete = False

    async def receive_in_time() -> Message:
        nonlocal is_complete
        if is_complete:  # the next message is the end of the connection
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            detail = f"The body did not arrive within {_BODY_SECONDS:g} seconds."
            # The framework would turn any other exception into a 400.
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail) from None
        is_complete = not message.get("more_body", False)
        return message

    return receive_in_time
