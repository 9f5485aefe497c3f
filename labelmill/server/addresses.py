"""Addresses to listen on."""

from __future__ import annotations

from typing import Final

from jobs.errors import UserError

_MAX_PORT: Final = 65_535


def parse_address(listen: str) -> tuple[str, int]:
    """Return the address and the port of `ADDRESS:PORT`. Raises UserError."""
    address, _, port = listen.rpartition(":")
    if not address or not port.isdecimal() or int(port) > _MAX_PORT:
        raise UserError(f"{listen} is not an address with a port, such as 127.0.0.1:9187.")
    return address.removeprefix("[").removesuffix("]"), int(port)


def http_url(address: str, port: int) -> str:
    """Return the URL of a server. An IPv6 address needs brackets before the port."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"
