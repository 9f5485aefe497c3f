"""End connections whose clients keep the server waiting, so that they cannot take all."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Connections beyond these are answered with 503.
MAX_CONNECTIONS: Final = 128

#: The paths of requests that may take long to arrive. Each needs a key, and has limits of its own.
UPLOAD_PATHS: Final = frozenset(("/v1/files", "/v1/classifications"))


class Connection(H11Protocol):
    """A connection whose client must send the head of its next request in time.

    Uvicorn's own timeout covers only clients that send nothing at all after an answer. Here it begins with
    the connection and with each answer, and only the head of a request ends it. So it also ends a head that
    comes byte by byte, and a body that goes on after its answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout. If there are too many connections, end the one that has waited longest."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
            waiting = [each for each in others if each._waits()]
            if waiting:
                min(waiting, key=lambda each: each._since).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what was received. Unlike uvicorn's method, this does not stop the timeout."""
        self.conn.receive_data(data)
        self.handle_events()

    def on_response_complete(self) -> None:
        """Start the timeout for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()

    def _waits(self) -> bool:
        """Return whether the client must send something: the head of a request, or a body that is short."""
        if self.timeout_keep_alive_task is not None:
            return True
        return self.cycle is not None and self.cycle.more_body and self.scope["path"] not in UPLOAD_PATHS
