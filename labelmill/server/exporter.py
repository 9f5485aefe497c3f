"""The exporter: an HTTP server that answers Prometheus' scrapes.

prometheus_client's own `start_http_server` lets each connection keep a thread permanently, accepts any number
of them, and prints a traceback for each client that disconnects.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

#: The maximum number of open connections. A container may start 64 threads.
MAX_CONNECTIONS: Final = 16

#: How long a client may send nothing, in seconds.
IDLE_SECONDS: Final = 10.0


class Exporter:
    """A context manager: inside it, an HTTP server answers scrapes."""

    def __init__(self, registry: CollectorRegistry, *, address: str, port: int) -> None:
        """Start the server. Port 0 is any free port. Raises OSError if the address cannot be used."""
        self._server = _Server(address, port)
        self._server.set_app(make_wsgi_app(registry))
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS  # without it, a client that sends nothing keeps its thread permanently

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each connection, and a maximum number of connections.

    If there is one too many, the server closes the oldest. So a client that opens many, or sends its request
    byte by byte, cannot keep Prometheus out.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int) -> None:
        if ":" in address:
            self.address_family = socket.AF_INET6
        self._open: deque[socket.socket] = deque()
        self._lock = threading.Lock()
        super().__init__((address, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread. If there are too many, close the oldest first."""
        with self._lock:
            self._open.append(request)
            oldest = self._open.popleft() if len(self._open) > MAX_CONNECTIONS else None
        if oldest is not None:
            with suppress(OSError):  # the client has closed it
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was answered."""
        with self._lock, suppress(ValueError):  # it was closed as the oldest
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client that disconnects, or is disconnected, is not an error."""
