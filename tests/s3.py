"""A real S3 server, which comes with the package `moto`: it can be slow, and stop and start again.

A pytest plugin (tests/conftest.py names it).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import fsspec
import pytest

if TYPE_CHECKING:
    from werkzeug.serving import BaseWSGIServer

#: What a user sets to reach an S3 server of their own.
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class S3Server:
    """The server, in a thread. Its objects survive `stop`."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app  # which take a second

        self.delay = 0.0  # seconds per request
        self.at_once = 0  # most requests at the same time, so far
        self.requests: list[str] = []  # method and path of each
        self.before: Callable[[str], None] = lambda _request: None  # called with each
        self.answer: tuple[int, bytes] | None = None  # status and body of all answers, instead of its own
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._now = 0
        self._server: BaseWSGIServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", getattr(self, "_port", 0), self._answer, threaded=True)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop answering: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def reset(self) -> None:
        """Forget what was counted, and be fast again."""
        self.delay, self.at_once, self.requests, self.before = 0.0, 0, [], lambda _request: None
        self.answer = None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        with self._lock:
            self.requests.append(request)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        try:
            self.before(request)
            time.sleep(self.delay)
            if self.answer is not None:
                status, body = self.answer
                headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
                start_response(f"{status} Refused", headers)
                return [body] if environ["REQUEST_METHOD"] != "HEAD" else []
            return self._app(environ, start_response)
        except ConnectionError:
            # Leave no connection open: this server sends `100 Continue` twice, and aiohttp has no timeout
            # after the second.
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server of all tests."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, which `s3://` reaches in this process and in those that it starts."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    s3_server.reset()
    with _no_instances():
        yield s3_server


@contextlib.contextmanager
def _no_instances() -> Iterator[None]:
    """Let no file system that fsspec keeps outlive the environment that it was made in."""
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    yield
    kind.clear_instance_cache()


_numbers = count(1)


@pytest.fixture
def s3_bucket(s3: S3Server) -> str:  # noqa: ARG001
    """The URL of a new bucket."""
    name = f"bucket{next(_numbers)}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
