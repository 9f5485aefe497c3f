"""Limits for each client: requests per second, wrong keys, and uploads at the same time.

They are counted in this process: each of several servers allows the full amount.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from jobs.settings import Settings
from labelmill.server.connections import MAX_CONNECTIONS
from labelmill.server.problems import ApiError

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


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _too_many(detail: str, seconds: float) -> ApiError:
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        "too_many_requests",
        detail,
        {"Retry-After": str(math.ceil(seconds))},
    )
