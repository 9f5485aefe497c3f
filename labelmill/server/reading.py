"""What many requests read from the ledger is read once for all of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from jobs.errors import LabelmillError

T = TypeVar("T")


class Reading(Generic[T]):
    """A value that is read by one thread at a time, however many requests ask for it."""

    def __init__(self, read: Callable[[], T], *, own_thread: bool = False) -> None:
        """`read` returns the value. It runs in a thread of its own, or in one that requests share."""
        self._read = read
        self._limiter = CapacityLimiter(1) if own_thread else None
        self._lock = asyncio.Lock()
        self._latest: T | LabelmillError
        self._began_at = -math.inf

    async def latest(self, max_age: float = 0.0) -> T:
        """Return the value as it was at most `max_age` seconds ago. Raises what reading it does.

        Requests that come while it is being read share the next reading, because this one may have missed
        what they have just changed.
        """
        since = time.monotonic() - max_age
        if self._began_at < since:
            async with self._lock:
                if self._began_at < since:
                    began_at = time.monotonic()
                    try:
                        self._latest = await anyio.to_thread.run_sync(self._read, limiter=self._limiter)
                    except LabelmillError as error:  # otherwise each would wait for the same timeout in turn
                        self._latest = error
                    self._began_at = began_at
        latest = self._latest
        if isinstance(latest, LabelmillError):
            raise latest
        return latest

    def known(self, max_age: float) -> T | None:
        """Return the value that was read last, or None, without waiting.

        If it is older than `max_age` seconds, begin to read it.
        """
        if self._began_at < time.monotonic() - max_age and not self._lock.locked():
            self._refreshing = asyncio.create_task(self._refresh())
        latest = getattr(self, "_latest", None)
        return None if isinstance(latest, LabelmillError) else latest

    async def _refresh(self) -> None:
        with suppress(LabelmillError):  # `latest` raises it to those who wait
            await self.latest()
