"""Send requests to addresses that users name, without letting them reach our own network.

A name is resolved once, and the connection goes to the very address that was checked: a name server that
answers differently the second time gains nothing. Proxies in the environment are ignored, because a proxy
would resolve the name itself.

Import this only where it is needed: httpx takes a tenth of a second.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import httpcore
import httpx

from jobs.errors import AddressForbidden, Unavailable
from jobs.network.objects import is_web, shown_url

_PORTS: Final = {"http": 80, "https": 443}

_MAX_PORT: Final = 65_535

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))

_MALFORMED: Final = "The URL is malformed: write it as https://HOST/PATH."

_NOT_IN_A_URL: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")

#: A name, or an IP address.
_HOST: Final = re.compile(r"[\w.:-]+", re.ASCII)

#: All global unicast addresses of IPv6 are in here.
_UNICAST: Final = IPv6Network("2000::/3")

#: NAT64: an address stands for the IPv4 address in its last 32 bits.
_NAT64: Final = IPv6Network("64:ff9b::/96")
#: Not public either, whatever an older Python says: 6to4 and Teredo, to whose inner IPv4 address a router may
#: still send the packets; addresses with special meanings, such as Oracle's metadata; and Azure's own host.
_SPECIAL: Final = tuple(
    map(
        ip_network,
        ("2002::/16", "2001::/23", "3fff::/20", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16"),
    )
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: httpx.Headers
    body: bytes  # at most one byte more than was allowed, so that the caller can tell


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float,
    max_bytes: int,
    redirects: int = 0,
    private: Iterable[str] = (),
    trusted: bool = False,
) -> Answer:
    """Send a request to a URL that a user named, and return the answer, whatever its status.

    `timeout`, in seconds, covers everything except name resolution, which has its own. At most `redirects`
    redirects are followed, with GET, and each is checked like the first address; the last answer is then the
    redirect itself. `private` names the hosts, with a port or without, that may have any address. If the URL
    is `trusted`, its own host and port may have any, too.

    Raises AddressForbidden if the URL or an address of its host is not allowed, Unavailable if there is no
    whole answer in time.
    """
    target = _parse(url)
    allowed = {name.lower() for name in private}
    if trusted:
        allowed.add(_names(target)[1])
    deadline = time.monotonic() + timeout
    while True:
        answer = _exchange(target, method, dict(headers or {}), body, deadline, max_bytes, allowed)
        location = answer.headers.get("Location")
        if answer.status not in _REDIRECTS or not location or redirects <= 0:
            return answer
        redirects -= 1
        method, body, before = "GET", None, target
        target = _parse(location, before)
        if (target.scheme, target.netloc) != (before.scheme, before.netloc):
            headers = None  # they were meant for the other server


def check_url(url: str, *, private: Iterable[str] = (), need_tls: bool = False) -> None:
    """Raise AddressForbidden if `request` would refuse this URL now, Unavailable if it has no address.

    With `need_tls`, http:// is refused, too, unless `private` names the host.
    """
    target = _parse(url)
    allowed = {name.lower() for name in private}
    if need_tls and target.scheme != "https" and allowed.isdisjoint(_names(target)):
        raise AddressForbidden(
            f"{shown_url(url)} must begin with https://, or LABELMILL_PRIVATE_HOSTS must name its host."
        )
    with _reporting(target):
        _resolve(target, allowed)


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:
            ip = IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


def _parse(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """Return a URL, or the one to which `base` redirects. Raises AddressForbidden."""
    if _NOT_IN_A_URL.search(url):
        raise AddressForbidden(
            "The URL contains a character that is not allowed in a URL: write it percent-encoded, as in %20."
        )
    try:
        target = base.join(url) if base else httpx.URL(url.strip(" "))
        target = target.copy_with(host=target.raw_host.decode().lower().removesuffix("."))
    except (httpx.InvalidURL, ValueError):  # brackets without an address, an impossible name or port
        raise AddressForbidden(_MALFORMED) from None
    if not is_web(target.scheme):
        raise AddressForbidden(f"{shown_url(url)} does not begin with http:// or https://.")
    if target.userinfo:
        raise AddressForbidden("The URL contains a user or a password: leave them out.")
    if not target.raw_host:
        raise AddressForbidden("The URL names no host: write it as https://HOST/PATH.")
    if not _HOST.fullmatch(target.raw_host.decode()) or not 0 < _port(target) <= _MAX_PORT:
        raise AddressForbidden(_MALFORMED)
    return target


def _port(target: httpx.URL) -> int:
    return _PORTS[target.scheme] if target.port is None else target.port


def _names(target: httpx.URL) -> tuple[str, str]:
    """Return how settings can name a URL's host: without the port, and with it."""
    host = target.raw_host.decode()
    name = f"[{host}]" if ":" in host else host
    return name, f"{name}:{_port(target)}"


def _resolve(target: httpx.URL, allowed: set[str]) -> list[Any]:
    """Return the host's addresses, as the socket module has them. Raises AddressForbidden, OSError."""
    found = socket.getaddrinfo(target.raw_host.decode(), _port(target), type=socket.SOCK_STREAM)
    if allowed.isdisjoint(_names(target)) and not all(is_public(str(address[0])) for *_, address in found):
        # Without the address, which would tell strangers about the network.
        raise AddressForbidden(
            f"{target.netloc.decode()} is not on the public internet: use a public address, or list the host "
            "in LABELMILL_PRIVATE_HOSTS."
        )
    return found


def _exchange(
    target: httpx.URL,
    method: str,
    headers: dict[str, str],
    body: bytes | None,
    deadline: float,
    max_bytes: int,
    allowed: set[str],
) -> Answer:
    """Send one request over a connection of its own, and read no more of the answer than allowed."""
    url = httpcore.URL(
        scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
    )
    headers = {
        "Host": target.netloc.decode(),
        "User-Agent": "labelmill",
        "Accept-Encoding": "identity",
        "Connection": "close",
    } | headers
    with (
        _reporting(target),
        httpcore.HTTP11Connection(url.origin, _connect(target, deadline, allowed)) as connection,
        connection.stream(method, url, headers=[*headers.items()], content=body) as response,
    ):
        parts, size = [], 0
        for part in response.iter_stream():
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                break
        content = b"".join(parts)[: max_bytes + 1]
        return Answer(response.status, httpx.Headers(response.headers), content)


def _connect(target: httpx.URL, deadline: float, allowed: set[str]) -> _Stream:
    """Connect to the first address that answers. Raises AddressForbidden, OSError."""
    addresses = _resolve(target, allowed)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left = len(addresses) - number
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(_left(deadline) / left)  # leave time for the others
            connected.connect(address)
            if target.scheme == "https":
                connected.settimeout(_left(deadline))
                connected = _tls().wrap_socket(connected, server_hostname=target.raw_host.decode())
            return _Stream(connected, deadline)
        except BaseException as error:
            connected.close()
            if not isinstance(error, OSError) or left == 1 or time.monotonic() >= deadline:
                raise
    raise OSError("the host has no address")


class _Stream(httpcore.NetworkStream):
    """A connected socket whose reads and writes all end at one deadline."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        unsent = memoryview(buffer)
        while unsent:
            self._socket.settimeout(_left(self._deadline))
            unsent = unsent[self._socket.send(unsent) :]

    def close(self) -> None:
        self._socket.close()


def _left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError if it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return seconds


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextmanager
def _reporting(target: httpx.URL) -> Iterator[None]:
    """Raise Unavailable, with the reason, if the server cannot be reached or breaks off."""
    try:
        yield
    except (OSError, UnicodeError, httpcore.ProtocolError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unavailable(f"{shown_url(str(target))} cannot be reached: {reason}") from error
