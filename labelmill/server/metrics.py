"""Metrics of the HTTP API: how many requests, how they ended, and how long they took.

Each server counts its own requests, in memory. `labelmill serve --metrics` serves them on another port, which
no proxy publishes.
"""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Upper bounds in seconds. The largest are for `POST /v1/classifications`, which may wait for labels.
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Measured:
    """Counts the requests of an application, and measures the time until each answer begins."""

    def __init__(self, app: ASGIApp) -> None:
        """Begin at zero."""
        # The times at which series were created would double the number of series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._app = app
        self._seconds = Histogram(
            "labelmill_api_request_seconds",
            "Time until the answer begins, by 2xx, 3xx, 4xx and 5xx.",
            ["status"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for status in ("2xx", "3xx", "4xx", "5xx"):
            self._seconds.labels(status)  # Prometheus sees no increase in a series that is new

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and measure it."""
        began = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = f"{message['status'] // 100}xx"
                self._seconds.labels(status).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_measured)
