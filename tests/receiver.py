"""A receiver of webhooks: a real HTTP server on loopback that keeps what it gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


class Receiver:
    """What arrived, and how it is answered."""

    def __init__(self) -> None:
        self.url = ""
        #: The headers and the body of each request, in order.
        self.got: list[tuple[dict[str, str], str]] = []
        #: The statuses of the next answers; afterwards all are 204.
        self.answers: list[int] = []
        self.location: str | None = None  # of redirects

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    def verified(self, secret: str, number: int = -1) -> Any:
        """Return a message, which the reference implementation of the standard verifies."""
        headers, body = self.got[number]
        return Webhook(secret).verify(body, headers)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], port: int = 0, host: str = "127.0.0.1") -> Iterator[int]:
    """Answer requests by threads, on this port or on a free one, which is yielded."""
    with ThreadingHTTPServer((host, port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Run a receiver, on this port or on a free one."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler, port) as free:
        receiver.url = f"http://127.0.0.1:{free}/hook"
        yield receiver
