"""What commands need to know of the HTTP API without loading it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs.errors import UserError
from jobs.files import make_private_folder, write_whole
from jobs.ledger.api.keys import Role, create_key, digest_of, list_keys, valid_keys
from jobs.ledger.api.sessions import make_link
from jobs.settings import Settings

if TYPE_CHECKING:
    from labelmill.client import Client

#: Where the API listens unless `--listen` says otherwise.
DEFAULT_LISTEN: Final = "127.0.0.1:8000"

_MAX_PORT: Final = 65_535

#: The state of a TCP socket that listens, in /proc/net/tcp.
_LISTENS: Final = "0A"

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
    return f"http://{_host_port(address, port)}"


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_server_installed() -> bool:
    """Return whether the extra `server` is installed."""
    return all(find_spec(name) is not None for name in ("fastapi", "uvicorn", "PIL"))


def open_listener(listen: str) -> socket.socket:
    """Return a socket that listens on `ADDRESS:PORT`, or the inherited one of `fd:N`. Raises UserError."""
    kind, _, number = listen.partition(":")
    if kind != "fd":
        return listen_on(*parse_address(listen))
    try:
        return socket.socket(fileno=int(number))
    except (ValueError, OSError):
        raise UserError(
            f"{listen} is not a socket that this process has inherited: name HOST:PORT instead."
        ) from None


def listen_on(address: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises UserError if that is not possible.

    It never moves to another port: clients would send their keys to the program that has this one.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=128)
    except OSError as error:
        place = _host_port(address, port)
        if error.errno != errno.EADDRINUSE:
            reason = f"Cannot listen on {place} ({error.strerror}): choose another address with --listen."
        else:
            other = _host_port(address, (port + 1) % (_MAX_PORT + 1))
            reason = (
                f"Cannot listen on {place}: {_who_listens(port)} listens there. End it, or name another "
                f"port: `--listen {other}`."
            )
        raise UserError(reason) from None


def _who_listens(port: int) -> str:
    """Return the process that listens on the port. Only root can see those of other users."""
    with suppress(OSError):
        tables = [table.read_text() for table in Path("/proc/net").glob("tcp*")]
        lines = [line.split() for table in tables for line in table.splitlines()]
        sockets = {
            f"socket:[{line[9]}]"
            for line in lines
            if line[3] == _LISTENS and int(line[1].rpartition(":")[2], 16) == port
        }
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or belongs to another user
                if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                    return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return "another process"


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


def sign_in_path(client: Client) -> str:
    """Return the path of the pages; with the key of the state folder, that of a link that signs in once.

    Raises Unavailable.
    """
    try:
        secret = (client.settings.home / API_KEY_FILE).read_text().strip()
    except OSError:
        return "/"
    with client.ledger.transaction() as connection:
        key = valid_keys(connection).get(digest_of(secret))
        return "/" if key is None else f"/sign-in?link={make_link(connection, key.id)}"


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
