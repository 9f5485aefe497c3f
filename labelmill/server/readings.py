"""Read a batch once for all requests that ask for it at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

from fastapi.concurrency import run_in_threadpool

from jobs.errors import LabelmillError
from labelmill.server.schemas import BatchObject


class Readings:
    """The batches that requests are reading."""

    def __init__(self, read: Callable[[str], BatchObject]) -> None:
        """`read` returns a batch, given its id. It runs in a thread."""
        self._read = read
        self._readings: WeakValueDictionary[str, Reading] = WeakValueDictionary()

    def of(self, batch_id: str) -> Reading:
        """Return the reading of a batch, which other requests may hold already."""
        found = self._readings.get(batch_id)
        if found is None:
            self._readings[batch_id] = found = Reading(partial(self._read, batch_id))
        return found


class Reading:
    """A batch that is read by one thread at a time, however many requests ask for it."""

    def __init__(self, read: Callable[[], BatchObject]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._latest: BatchObject | LabelmillError | None = None
        self._began_at = 0.0

    async def latest(self, max_age: float = 0.0) -> BatchObject:
        """Return the batch as it was at most `max_age` seconds ago. Raises what reading it does.

        Requests that come while it is being read share the next reading, because this one may have missed
        what they have just changed.
        """
        since = time.monotonic() - max_age
        async with self._lock:
            if self._latest is None or self._began_at < since:
                began_at = time.monotonic()
                try:
                    self._latest = await run_in_threadpool(self._read)
                except LabelmillError as error:  # otherwise each would wait for the same timeout in turn
                    self._latest = error
                self._began_at = began_at
            latest = self._latest
        if isinstance(latest, LabelmillError):
            raise latest
        return latest
