"""Send requests to addresses that users name, without letting them reach our own network.

A name is resolved once, and the connection goes to the very address that was checked: a name server that
answers differently the second time gains nothing. Proxies in the environment are ignored, because a proxy
would resolve the name itself.
"""

from __future__ import annotations

import io
import re
import socket
import ssl
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

from jobs.errors import AddressForbidden, Unavailable
from jobs.network.objects import is_web, shown_url
from jobs.reading import read_up_to

_PORTS: Final = {"http": 80, "https": 443}

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))

#: The characters of a URL that are left as they are; others, such as spaces, are written in percent form.
_SAFE: Final = "%/:?#[]@!$&'()*+,;=~"

_NOT_IN_A_URL: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")

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

#: How many bytes one call reads.
_PART_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Message
    body: bytes  # at most one byte more than was allowed, so that the caller can tell


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL, taken apart."""

    url: str
    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def name(self) -> str:
        """Return the host as in a URL: an IPv6 address is in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def origin(self) -> str:
        """Return the host and the port, as in the `Host` header."""
        return self.name if self.port == _PORTS[self.scheme] else f"{self.name}:{self.port}"

    def is_in(self, hosts: Container[str]) -> bool:
        """Return whether hosts, with a port or without, contain this one."""
        return self.name in hosts or f"{self.name}:{self.port}" in hosts


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
    deadline = time.monotonic() + timeout
    allowed = frozenset(name.lower() for name in private)
    target = _parse(url)
    if trusted:
        allowed |= {f"{target.name}:{target.port}"}
    while True:
        answer = _exchange(target, method, dict(headers or {}), body, deadline, max_bytes, allowed)
        location = answer.headers.get("Location")
        if answer.status not in _REDIRECTS or not location or redirects <= 0:
            return answer
        redirects -= 1
        method, body, before = "GET", None, target
        target = _parse(target.url, location)
        if (target.scheme, target.origin) != (before.scheme, before.origin):
            headers = None  # they were meant for the other server


def check_url(url: str, *, private: Iterable[str] = (), need_tls: bool = False) -> None:
    """Raise AddressForbidden if `request` would refuse this URL now, Unavailable if it has no address.

    With `need_tls`, http:// is refused, too, unless `private` names the host.
    """
    target, allowed = _parse(url), frozenset(name.lower() for name in private)
    if need_tls and target.scheme != "https" and not target.is_in(allowed):
        raise AddressForbidden(f"{shown_url(url)} must begin with https://.")
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


def _parse(url: str, location: str = "") -> _Target:
    """Take a URL apart, or the one to which it redirects. Raises AddressForbidden."""
    try:
        url = urljoin(url, location)
        if _NOT_IN_A_URL.search(url):
            raise AddressForbidden("The URL contains a character that is not allowed in a URL.")
        parts = urlsplit(url.strip(" "))
        host, port = (parts.hostname or "").removesuffix("."), parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:  # brackets without an address, a port that is not a number, an impossible name
        raise AddressForbidden("The URL is malformed.") from None
    if not is_web(parts.scheme):
        raise AddressForbidden(f"{shown_url(url)} does not begin with http:// or https://.")
    if "@" in parts.netloc:
        raise AddressForbidden("The URL contains a user or a password: leave them out.")
    if not host:
        raise AddressForbidden("The URL names no host.")
    path = quote(parts.path or "/", safe=_SAFE) + (
        f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    )
    return _Target(url, parts.scheme, host, port or _PORTS[parts.scheme], path)


def _resolve(target: _Target, private: frozenset[str]) -> list[Any]:
    """Return the host's addresses, as the socket module has them. Raises AddressForbidden, Unavailable."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _unavailable(target, error) from None
    if not target.is_in(private):
        for *_, address in found:
            if not is_public(str(address[0])):
                # Without the address, which would tell strangers about the network.
                raise AddressForbidden(
                    f"{target.origin} is not on the public internet, and LABELMILL_PRIVATE_HOSTS does not "
                    "list it."
                )
    return found


def _exchange(
    target: _Target,
    method: str,
    headers: dict[str, str],
    body: bytes | None,
    deadline: float,
    max_bytes: int,
    private: frozenset[str],
) -> Answer:
    addresses = _resolve(target, private)
    try:
        with _connect(target, addresses, deadline) as connected:
            connection = HTTPConnection(target.host, target.port)
            connection.sock = _Timed(connected, deadline)
            headers = {"Host": target.origin, "User-Agent": "labelmill", "Connection": "close"} | headers
            connection.request(method, target.path, body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, _read(response, max_bytes))
    except (OSError, HTTPException) as error:
        raise _unavailable(target, error) from error


def _connect(target: _Target, addresses: list[Any], deadline: float) -> socket.socket:
    """Connect to the first address that answers. Raises OSError."""
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left = len(addresses) - number
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(_left(deadline) / left)  # leave time for the others
            connected.connect(address)
            if target.scheme == "https":
                connected.settimeout(_left(deadline))
                return _tls().wrap_socket(connected, server_hostname=target.host)
            return connected
        except OSError:
            connected.close()
            if left == 1 or time.monotonic() >= deadline:
                raise
        except BaseException:
            connected.close()
            raise
    raise OSError("the host has no address")


def _read(response: HTTPResponse, max_bytes: int) -> bytes:
    """Return the body, or its first bytes if it has more than `max_bytes`."""
    body = read_up_to(max_bytes + 1, lambda size: response.read(min(size, _PART_BYTES)))
    if len(body) <= max_bytes and response.length:
        raise HTTPException("the body ended early")
    return body


class _Timed(io.RawIOBase):
    """A connected socket for `http.client` whose reads and writes all end at one deadline."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self._deadline))
        return self._socket.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        unsent = memoryview(data)
        while unsent:
            self._socket.settimeout(_left(self._deadline))
            unsent = unsent[self._socket.send(unsent) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        """Leave the socket open: `http.client` closes it before it has read the answer."""


def _left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError if it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no answer in time")
    return seconds


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _unavailable(target: _Target, error: Exception) -> Unavailable:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unavailable(f"{shown_url(target.url)} cannot be reached: {reason}")
