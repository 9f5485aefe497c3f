"""What commands need to know of the HTTP API without loading it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from jobs.errors import UserError
from jobs.files import make_private_folder, write_whole
from jobs.ledger.api.keys import Role, create_key, list_keys
from jobs.settings import Settings

if TYPE_CHECKING:
    from labelmill.client import Client

DEFAULT_PORT: Final = 8000

_MAX_PORT: Final = 65_535

#: The file in the state folder with the key that `up` makes.
API_KEY_FILE: Final = "api-key"

#: The file in the state folder with the address of the API that is served from it.
API_URL_FILE: Final = "api-url"


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


def is_server_installed() -> bool:
    """Return whether the extra `server` is installed."""
    return all(find_spec(name) is not None for name in ("fastapi", "uvicorn", "PIL"))


def listen_locally() -> socket.socket:
    """Return a socket that listens on the loopback address, on the default port or else on any free one.

    Raises UserError.
    """
    try:
        return listen_on("127.0.0.1", DEFAULT_PORT)
    except UserError:
        return listen_on("127.0.0.1", 0)


def listen_on(address: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises UserError if that is not possible."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=128)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {address}:{port} ({error.strerror}): choose another address with --listen."
        ) from None


def make_first_key(client: Client) -> None:
    """Create a key for this machine and keep it in the state folder, unless there are keys already.

    Raises Unavailable.
    """
    with client.ledger.transaction() as connection:
        if list_keys(connection):
            return
        _, secret = create_key(connection, "first key", Role.ADMIN, only_local=True)
        # Before the key is committed: a key that nobody has seen would prevent a new one.
        write_whole(client.settings.home / API_KEY_FILE, f"{secret}\n".encode())


@contextmanager
def announced(settings: Settings, url: str) -> Iterator[None]:
    """Keep the API's address in the state folder while it is served, for `labelmill doctor`."""
    path = settings.home / API_URL_FILE
    with suppress(OSError):  # a pod's state folder may be read-only
        make_private_folder(path.parent)
        write_whole(path, f"{url}\n".encode())
    try:
        yield
    finally:
        with suppress(OSError):  # after a kill it stays, and the doctor says that nothing answers there
            if path.read_text() == f"{url}\n":
                path.unlink()
