"""A served HTTP API, and its users."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from fastapi.routing import APIRoute
from openai import OpenAI

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.settings import Settings
from labelmill.server.connections import Connection
from labelmill.server.serving import listen_on
from labelmill.web.site import _PAGES, create_site
from tests.console import Home, until

#: The paths of all pages that need a key, as FastAPI writes them: `/jobs/{job_id}`.
PAGES: Final = sorted(
    {route.path for router in _PAGES for route in router.routes if isinstance(route, APIRoute)}
)


def page_paths(**names: str) -> list[str]:
    """Return the paths of all pages about these things. If a page is about another kind, name one, too."""
    return [path.format_map(names) for path in PAGES]


def lasting(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch without what depends on the time at which it was read."""
    job = {name: value for name, value in batch["job"].items() if name != "read_at"}
    return batch | {"job": job, "rate": None, "eta_seconds": None}


@contextlib.contextmanager
def served(home: Home, log: Path) -> Iterator[str]:
    """Serve the API of a state folder on a free port; yield its URL."""
    log.write_bytes(b"")
    with home.started("serve", "--listen", "127.0.0.1:0", log=log):
        until(lambda: "HTTP API at " in log.read_text(), "the API is served")
        found = re.search(r"HTTP API at (\S+);", log.read_text())
        assert found is not None
        until(lambda: _answers(found[1]), "the API answers")
        yield found[1]


@contextlib.contextmanager
def served_locally(settings: Settings, **options: Any) -> Iterator[tuple[uvicorn.Server, str]]:
    """Serve the API by a thread of this process, with options of uvicorn; yield the server and its URL."""
    with listen_on("127.0.0.1", 0) as listening:
        app = create_site(settings, lambda: server.should_exit)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=Connection, **options))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def served_here(settings: Settings, ledger: Ledger) -> Iterator[tuple[uvicorn.Server, httpx.Client]]:
    """Serve the API by a thread of this process; yield the server, and a client that may do everything."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "test", Role.ADMIN)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        served_locally(settings) as (server, url),
        httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client,
    ):
        yield server, client


def connect(url: str, data: bytes, *, buffer: int | None = None) -> socket.socket:
    """Open a connection to the server, and send these bytes. `buffer` is how many it can receive unread."""
    address = urlsplit(url)
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(30)
    connection.connect((address.hostname, address.port))
    connection.sendall(data)
    return connection


def drip(connection: socket.socket, data: bytes, *, seconds: float) -> bytes:
    """Send the data again and again until the server ends the connection. Return what it answered."""
    answer = b""
    deadline = time.monotonic() + seconds
    connection.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            connection.sendall(data)
            received = connection.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionError:
            return answer
        if not received:
            return answer
        answer += received
    pytest.fail(f"the connection is still open after {seconds:g} seconds")


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def make_key(home: Home, role: str = "submit", *more: str) -> str:
    """Return a new key."""
    return home.ok("keys", "create", "test", "--role", role, *more).strip()


def openai_client(url: str, key: str) -> OpenAI:
    """Return OpenAI's own client, in which only the address and the key are other than usual."""
    return OpenAI(base_url=f"{url}/v1", api_key=key)


def lines_of(text: str) -> list[dict[str, object]]:
    """Return the objects of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]
