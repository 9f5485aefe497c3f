"""A served HTTP API, and its users."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from openai import OpenAI

from jobs.ledger import Ledger
from jobs.ledger.api_keys import Role, create_key
from jobs.settings import Settings
from labelmill.server.application import create_app
from labelmill.serving import listen_on
from tests.console import Home, until


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
def served_here(settings: Settings, ledger: Ledger) -> Iterator[tuple[uvicorn.Server, httpx.Client]]:
    """Serve the API by a thread of this process; yield the server, and a client that may do everything."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "test", Role.ADMIN)
    with listen_on("127.0.0.1", 0) as listening:
        app = create_app(settings, lambda: server.should_exit)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            yield server, client
        server.should_exit = True
        thread.join()


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
