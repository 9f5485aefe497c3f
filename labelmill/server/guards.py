"""Refuse requests that have no valid key, are for another host, too many, too large or too slow.

The key is checked before a byte of the body is read. All is counted in this process: each of several servers
allows the full amount.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from hmac import compare_digest
from http import HTTPStatus
from typing import Final

from fastapi.security.utils import get_authorization_scheme_param
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import LabelmillError
from jobs.ledger.api.keys import ApiKey, digest_of
from jobs.ledger.api.sessions import session_digest
from jobs.settings import Settings
from labelmill.server.access import Keys, check_place, csrf_token, session_cookie
from labelmill.server.connections import HEALTH_PATHS
from labelmill.server.problems import ApiError, ProblemCode, answer_to
from labelmill.server.usage import address_of

#: Maximum bytes of the head of a request. Uvicorn has the same limit, but only for one that comes in parts.
MAX_HEAD_BYTES: Final = 16 * 1024

#: The paths whose bodies may be larger than the limit for JSON. They have limits of their own.
_UPLOAD_PATHS: Final = frozenset(("/v1/files", "/v1/classifications"))

#: Maximum bytes of a body of JSON, and lists and objects in it: the parser would take a quarter of a second
#: for a megabyte of empty lists.
_MAX_BODY_BYTES: Final = 1024 * 1024
_MAX_CONTAINERS: Final = 10_000

#: Bytes per second at which a body must arrive, and for how many seconds it may fall behind.
_BODY_RATE: Final = 8 * 1024
_BODY_SECONDS: Final = 30.0

#: The header `Host`: an IPv6 address in brackets, or another address or name; and perhaps a port.
_HOST: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")

#: Requests without a valid key, per client address. The burst lets many clients begin with a new key.
_STRANGERS_PER_SECOND: Final = 1
_STRANGERS: Final = 128

#: Requests with one key at the same time: fewer than there are threads, and far fewer than connections.
_MAX_REQUESTS: Final = 20

#: Streams of events at the same time, with one key and in all. They hold connections, but no threads.
_MAX_STREAMS_OF_KEY: Final = 20
_MAX_STREAMS: Final = 100

#: Maximum clients that are remembered: strangers must not fill the memory.
_MAX_CLIENTS: Final = 10_000

#: The header in which the pages send their token with each change.
CSRF_HEADER: Final = "X-CSRF-Token"

_SAFE_METHODS: Final = frozenset(("GET", "HEAD"))

#: Seconds after which a client with too much at the same time may try again.
_RETRY_SECONDS: Final = 5


class RateLimit:
    """A bucket of tokens for each client: it gets `rate` tokens per second, and holds at most `burst`."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when counted

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


class Places:
    """Counts what each key does at the same time."""

    def __init__(self, what: str, of_key: int, total: float = math.inf) -> None:
        self._what = what
        self._of_key = of_key
        self._total = total
        self._taken: Counter[str] = Counter()

    @asynccontextmanager
    async def place(self, key_id: str) -> AsyncIterator[None]:
        """Take a place for this key. Raises ApiError if there is none."""
        if self._taken[key_id] >= self._of_key:
            detail = f"This key has {self._of_key} {self._what} already: wait until one has ended."
            raise _too_many(detail, _RETRY_SECONDS)
        if self._taken.total() >= self._total:
            detail = f"The server has {self._total} {self._what} already: try again."
            headers = {"Retry-After": str(_RETRY_SECONDS)}
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, ProblemCode.UNAVAILABLE, detail, headers)
        self._taken[key_id] += 1
        try:
            yield
        finally:
            self._taken[key_id] -= 1
            if not self._taken[key_id]:
                del self._taken[key_id]


class Limits:
    """The limits of one server."""

    def __init__(self, settings: Settings) -> None:
        self.by_key = RateLimit(settings.api_rate, burst=settings.api_rate)
        self.strangers = RateLimit(_STRANGERS_PER_SECOND, burst=_STRANGERS)
        self.requests = Places("requests", _MAX_REQUESTS)
        self.streams = Places("event streams", _MAX_STREAMS_OF_KEY, _MAX_STREAMS)
        self.uploads = Places("uploads", settings.api_uploads)


class Guard:
    """Refuses requests, before the application reads them."""

    def __init__(self, app: ASGIApp, limits: Limits, keys: Keys, hosts: Collection[str]) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request if it is refused, otherwise pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        async with AsyncExitStack() as stack:
            try:
                place = await self._check(Request(scope))
                await stack.enter_async_context(place)
            except LabelmillError as error:
                await answer_to(error)(scope, receive, send)
                return
            await self._app(scope, _in_time(receive, scope["path"]), send)

    async def _check(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Return the place that the request takes. Raises ApiError if it is refused, Unavailable."""
        path = request.scope["path"]  # `request.url` is made from the header `Host`
        _check_head(request)
        local = (request.scope.get("server") or ("127.0.0.1",))[0]
        check_host(request.headers.get("host", ""), local, self._hosts)
        if path in HEALTH_PATHS:
            return nullcontext()
        if path.startswith("/v1/"):
            key = await self._key_of(request)
        elif (found := await self._key_of_browser(request)) is not None:
            key = found
        else:
            self._count_stranger(request)
            return nullcontext()
        if seconds := self._limits.by_key.take(key.id):
            raise _too_many("Too many requests with this key: send fewer per second.", seconds)
        if request.method in ("POST", "PUT", "PATCH") and path not in _UPLOAD_PATHS:
            _check_body(request)
        places = self._limits.streams if path.endswith("/events") else self._limits.requests
        return places.place(key.id)

    async def _key_of(self, request: Request) -> ApiKey:
        """Return the request's key, and keep it for the application. Raises ApiError if it is not valid."""
        authorization = request.headers.get("authorization")
        if authorization is None and (found := await self._key_of_browser(request)) is not None:
            return found
        scheme, secret = get_authorization_scheme_param(authorization)
        is_missing = scheme.lower() != "bearer" or not secret
        digest, address = digest_of(secret), address_of(request.scope) or ""
        key = None if is_missing else await self._keys.find(digest)
        if key is None:
            # Only now: whatever others send from the same address, a valid key is served.
            self._count_stranger(request)
            if not is_missing and (key := await self._keys.find(digest, max_age=0)):  # it may be new
                self._limits.strangers.take(address, -1)
        if key is None:
            raise ApiError(
                HTTPStatus.UNAUTHORIZED,
                ProblemCode.UNAUTHORIZED,
                "Send a valid key: `Authorization: Bearer KEY`. `labelmill keys create` makes one.",
                {"WWW-Authenticate": "Bearer" if is_missing else 'Bearer error="invalid_token"'},
            )
        check_place(key, address)
        request.state.key, request.state.key_digest = key, digest
        return key

    async def _key_of_browser(self, request: Request) -> ApiKey | None:
        """Return the key of the browser's session, and keep it for the application; None without a session.

        Raises ApiError if the request may come from a page of another site.
        """
        secret = request.cookies.get(session_cookie(request.scope))
        key = None if not secret else await self._keys.find(session_digest(secret))
        if not secret or key is None:
            return None
        if request.method not in _SAFE_METHODS and not compare_digest(
            request.headers.get(CSRF_HEADER, "").encode(), csrf_token(secret).encode()
        ):
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                ProblemCode.FORBIDDEN,
                f"A browser must send the header `{CSRF_HEADER}` of the page: load the page again.",
            )
        check_place(key, address_of(request.scope) or "")
        request.state.key, request.state.key_digest = key, session_digest(secret)
        request.state.csrf_token = csrf_token(secret)
        return key

    def _count_stranger(self, request: Request) -> None:
        """Count a request without a valid key. Raises ApiError if its address has sent too many."""
        if seconds := self._limits.strangers.take(address_of(request.scope) or ""):
            raise _too_many("Too many requests without a valid key from this address: send fewer.", seconds)


def _check_head(request: Request) -> None:
    """Raise ApiError if the head is too large, or does not tell where the body ends."""
    head = len(request.scope["path"]) + len(request.scope["query_string"])
    if head + sum(len(name) + len(value) for name, value in request.headers.raw) > MAX_HEAD_BYTES:
        detail = f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes: send fewer headers."
        raise ApiError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, ProblemCode.TOO_LARGE, detail)
    if "content-length" in request.headers and "transfer-encoding" in request.headers:
        # A proxy may take the rest of the body for another client's request.
        detail = "Send either `Content-Length` or `Transfer-Encoding`."
        raise ApiError(HTTPStatus.BAD_REQUEST, ProblemCode.MALFORMED, detail, {"Connection": "close"})


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
    if "transfer-encoding" in request.headers:
        detail = "Send the length of the body: `Content-Length`."
        raise ApiError(HTTPStatus.LENGTH_REQUIRED, ProblemCode.LENGTH_REQUIRED, detail)
    length = int(request.headers.get("content-length", "0"))
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if length and kind != "application/json":
        detail = "Send the body as `Content-Type: application/json`."
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ProblemCode.UNSUPPORTED_MEDIA_TYPE, detail)
    if length > _MAX_BODY_BYTES:
        detail = f"The body is larger than {_MAX_BODY_BYTES:,} bytes: send it in parts, or upload a file."
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, ProblemCode.TOO_LARGE, detail)


def _in_time(receive: Receive, path: str) -> Receive:
    """Return `receive`, which raises HTTPException if the body is too slow, or costs the parser too much."""
    loop = asyncio.get_running_loop()
    is_complete, is_json = False, path not in _UPLOAD_PATHS
    seconds, containers = _BODY_SECONDS, 0

    async def receive_in_time() -> Message:
        nonlocal is_complete, seconds, containers
        if is_complete:  # the next message is the end of the connection
            return await receive()
        began = loop.time()  # the time that the server takes between two messages does not count
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            detail = "The body arrives too slowly: send it over a faster connection."
            # The framework would turn any other exception into a 400.
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail) from None
        body = message.get("body", b"")
        seconds = min(_BODY_SECONDS, seconds - (loop.time() - began) + len(body) / _BODY_RATE)
        is_complete = not message.get("more_body", False)
        if is_json:
            containers += body.count(b"[") + body.count(b"{")
            if containers > _MAX_CONTAINERS:
                detail = f"The body has more than {_MAX_CONTAINERS:,} lists and objects: send it in parts."
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
        return message

    return receive_in_time


def _too_many(detail: str, seconds: float) -> ApiError:
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        ProblemCode.TOO_MANY_REQUESTS,
        detail,
        {"Retry-After": str(math.ceil(seconds))},
    )
