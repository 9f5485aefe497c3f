"""Refuse requests that are for another host, too many, too large or too slow, before anything reads them.

Requests per second, wrong keys and uploads are counted in this process: each of several servers allows the
full amount.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from fastapi.security.utils import get_authorization_scheme_param
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings
from labelmill.server.connections import MAX_CONNECTIONS, UPLOAD_PATHS
from labelmill.server.problems import ApiError, ProblemCode, problem

#: Maximum bytes of the head of a request. Uvicorn has the same limit, but only for one that comes in parts.
MAX_HEAD_BYTES: Final = 16 * 1024

#: Maximum bytes of a request's body, apart from uploads.
_MAX_BODY_BYTES: Final = 1024 * 1024

#: How long such a body may take to arrive.
_BODY_SECONDS: Final = 30.0

#: The header `Host`: an IPv6 address in brackets, or another address or name; and perhaps a port.
_HOST: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")

#: Requests with unknown keys, per client address. The burst lets each connection begin with a new key at the
#: same time.
_GUESSES_PER_SECOND: Final = 1
_GUESSES: Final = MAX_CONNECTIONS

#: Maximum clients that are remembered: strangers must not fill the memory.
_MAX_CLIENTS: Final = 10_000

#: Seconds after which a client with too many uploads may try again.
_UPLOAD_RETRY_SECONDS: Final = 5


class RateLimit:
    """A bucket of tokens for each client: it gets `rate` tokens per second, and holds at most `burst`."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when counted

    def __contains__(self, client: str) -> bool:
        return client in self._buckets

    def take(self, client: str, tokens: float = 1) -> float:
        """Take tokens, or give them back if negative. Return 0, or the seconds until there are enough."""
        now = time.monotonic()
        left, then = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        missing = max(0.0, tokens - left)
        self._buckets[client] = (min(self._burst, left - (0 if missing else tokens)), now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return missing / self._rate

    def forget(self, client: str) -> None:
        """Forget a client."""
        self._buckets.pop(client, None)


class Limits:
    """The limits of one server."""

    def __init__(self, settings: Settings) -> None:
        self._by_key = RateLimit(settings.api_rate, burst=settings.api_rate)
        self._guesses = RateLimit(_GUESSES_PER_SECOND, burst=_GUESSES)
        self._max_uploads = settings.api_uploads
        self._uploads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check(self, address: str, secret: str) -> None:
        """Count a request before its key is looked up. Raises ApiError if there are too many.

        A key that was valid before has a limit of its own, so that nobody can lock its owner out by guessing
        from the same address.
        """
        key = _digest(secret)
        with self._lock:
            known = key in self._by_key
            seconds = self._by_key.take(key) if known else self._guesses.take(address)
        if seconds:
            what = "requests with this key" if known else "wrong keys from this address"
            raise _too_many(f"Too many {what}: send fewer per second.", seconds)

    def note(self, address: str, secret: str, *, valid: bool) -> None:
        """Note whether the key of a request that `check` has counted is valid."""
        key = _digest(secret)
        with self._lock:
            if not valid:
                self._by_key.forget(key)
            elif key not in self._by_key:
                self._guesses.take(address, -1)
                self._by_key.take(key)

    @asynccontextmanager
    async def uploading(self, key_id: str) -> AsyncIterator[None]:
        """Count an upload with this key. Raises ApiError if there are too many at the same time."""
        if self._uploads[key_id] >= self._max_uploads:
            detail = f"This key has {self._max_uploads} uploads already: wait until one has ended."
            raise _too_many(detail, _UPLOAD_RETRY_SECONDS)
        self._uploads[key_id] += 1
        try:
            yield
        finally:
            self._uploads[key_id] -= 1


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
            detail = f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes: send fewer headers."
            raise ApiError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, ProblemCode.TOO_LARGE, detail)
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
        raise ApiError(
            HTTPStatus.BAD_REQUEST, ProblemCode.MALFORMED, "Send the header `Host`, with a name or address."
        )
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
        ProblemCode.MISDIRECTED,
        f"This server is not {name}: add the names under which it is served to LABELMILL_API_HOSTS.",
    )


def _check_body(request: Request) -> None:
    """Raise ApiError if the body is too large, of unknown length, or not JSON."""
    length = request.headers.get("content-length", "")
    # With a Transfer-Encoding, the length does not count.
    if length.isdecimal() and "transfer-encoding" not in request.headers:
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if int(length) and kind != "application/json":
            detail = "Send the body as `Content-Type: application/json`."
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ProblemCode.UNSUPPORTED_MEDIA_TYPE, detail)
        if int(length) > _MAX_BODY_BYTES:
            detail = f"The body is larger than {_MAX_BODY_BYTES:,} bytes: send it in parts, or upload a file."
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, ProblemCode.TOO_LARGE, detail)
    elif "transfer-encoding" in request.headers:
        detail = "Send the length of the body: `Content-Length`."
        raise ApiError(HTTPStatus.LENGTH_REQUIRED, ProblemCode.LENGTH_REQUIRED, detail)


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
            detail = f"The body did not arrive within {_BODY_SECONDS:g} seconds: send it again."
            # The framework would turn any other exception into a 400.
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail) from None
        is_complete = not message.get("more_body", False)
        return message

    return receive_in_time


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _too_many(detail: str, seconds: float) -> ApiError:
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        ProblemCode.TOO_MANY_REQUESTS,
        detail,
        {"Retry-After": str(math.ceil(seconds))},
    )
