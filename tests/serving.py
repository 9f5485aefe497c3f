"""A served HTTP API, and its users."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
from openai import OpenAI

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
