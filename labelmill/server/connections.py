"""End connections whose clients keep the server waiting, so that they cannot take all."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from labelmill.server.problems import ProblemCode, problem

#: More connections than these are ended, or answered with 503. Clients that come together need room: until
#: their requests are read, nothing distinguishes them from clients that send nothing.
MAX_CONNECTIONS: Final = 256

#: The paths that are answered even then. Orchestrators ask there whether the server works.
HEALTH_PATHS: Final = frozenset(("/healthz", "/readyz"))

#: The connection ends if its client accepts nothing of an answer for this long.
_WRITE_SECONDS: Final = 10.0

#: Bytes of an answer that the system keeps for a connection. By default it keeps megabytes, so that nobody
#: sees for many seconds whether a slow client accepts anything.
_SEND_BUFFER_BYTES: Final = 128 * 1024


class Connection(H11Protocol):
    """A connection whose client must send the head of its next request, and accept its answer, in time.

    Uvicorn's own timeout covers only clients that send nothing at all after an answer. Here it begins with
    the connection and with each answer, and only the head of a request ends it. So it also ends a head that
    comes byte by byte, and a body that goes on after its answer.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._app, self.app = self.app, self._answer
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout. If there are too many connections, end the one that has waited longest."""
        super().connection_made(transport)
        # Writing is paused whenever the system has not taken all of an answer yet.
        transport.set_write_buffer_limits(high=0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if len(self.connections) > MAX_CONNECTIONS:
            # Without those that others have ended, if several clients come together.
            others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
            there = [each for each in others if not each.transport.is_closing()]
            waiting = [each for each in there if each._waits()]
            if waiting and len(there) >= MAX_CONNECTIONS:
                min(waiting, key=lambda each: each._since).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what was received. Unlike uvicorn's method, this does not stop the timeout.

        A client that sends the next request before it has the answer gets that answer, and is disconnected.
        """
        self.conn.receive_data(data)
        self.handle_events()
        if self.cycle is not None and not self.cycle.more_body and self.conn.trailing_data[0]:
            self.cycle.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers: until they end, they would keep all that this connection has received."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_watching()

    def on_response_complete(self) -> None:
        """Start the timeout for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to watch whether the client accepts the answer."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """End the watch."""
        super().resume_writing()
        self._stop_watching()

    def _watch_writing(self) -> None:
        self._since, self._unsent = self.loop.time(), self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(_WRITE_SECONDS, self._check_writing)

    def _stop_watching(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    def _check_writing(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_writing()
        else:
            self.transport.abort()

    def _waits(self) -> bool:
        """Return whether it is the client's turn: to send the head of a request, or to accept an answer."""
        return self.timeout_keep_alive_task is not None or self.flow.write_paused

    def _should_upgrade(self) -> bool:
        # Uvicorn would warn of each offer of another protocol, which HTTP lets a server ignore.
        return False

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it if there are too many connections and none could be ended."""
        if len(self.connections) <= MAX_CONNECTIONS or scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send)
            return
        detail = f"The server has {MAX_CONNECTIONS} connections that are all in use: try again."
        headers = {"Retry-After": "1", "Connection": "close"}
        answer = problem(HTTPStatus.SERVICE_UNAVAILABLE, ProblemCode.UNAVAILABLE, detail, headers)
        await answer(scope, receive, send)
