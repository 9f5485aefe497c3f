"""A web server for links, and addresses that no link may lead to."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from jobs.network import outbound
from jobs.network.outbound import request
from tests.receiver import serving

#: Every way to write an address that is not on the public internet, as the host in a URL.
FORBIDDEN: Final = (
    "127.0.0.1",
    "127.0.0.1.",
    "localhost",  # a name
    "LOCALHOST.",
    "example.com@127.0.0.1",
    "example.com:80@127.0.0.1",
    "127\u30020\u30020\u30021",  # other full stops and digits, which become these in a host name
    "\u2460\u2461\u2466.0.0.1",
    "127.1",  # short
    "2130706433",  # decimal
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",  # octal
    "017700000001",
    "0",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",  # shared by carriers
    "100.100.100.200",
    "169.254.169.254",  # the metadata of many clouds
    "168.63.129.16",  # Azure's
    "192.0.0.192",
    "198.18.0.1",
    "192.0.2.1",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",  # compatible with IPv4, long obsolete
    "[64:ff9b::7f00:1]",  # NAT64
    "[64:ff9b::169.254.169.254]",
    "[64:ff9b:1::1]",
    "192.88.99.1",
    "[2002:7f00:1::]",  # 6to4
    "[2001:1::1]",
    "[3fff::1]",
    "[2001:0:7f00:1::1]",  # Teredo
    "[2001:db8::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[4000::1]",  # not allocated
)


@dataclass
class Server:
    """A real web server, and what it was asked."""

    port: int
    asked: list[tuple[str, str, str, bytes]] = field(default_factory=list)  # method, path, Host, body
    headers: list[dict[str, str]] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)  # its own address, as the client dialled it

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> outbound.Answer:
        usual: dict[str, Any] = {"timeout": 5.0, "max_bytes": 1_000, "private": [self.host]}
        return request("GET", f"http://{self.host}{path}", **usual | options)


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:  # noqa: C901 -- one page after the other
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.asked.append((self.command, self.path, self.headers["Host"], body))
            server.headers.append(dict(self.headers))
            server.reached.append(self.connection.getsockname()[0])
            kind, _, rest = self.path[1:].partition("/")
            with contextlib.suppress(OSError):  # the client may leave
                getattr(self, f"answer_{kind}", self.answer_plain)(rest)

        do_POST = do_GET  # noqa: N815

        def answer_plain(self, _rest: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"pixels")

        def answer_to(self, location: str) -> None:
            self.send_response(302)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer_status(self, status: str) -> None:
            self.send_response(int(status))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer_circle(self, _rest: str) -> None:
            self.answer_to("/circle")

        def answer_short(self, _rest: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"pixels")

        def answer_endless(self, _rest: str) -> None:
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x" * 10_000)

        def answer_slow(self, where: str) -> None:
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if where == "body" else b"X: "))
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

    return Handler


@contextlib.contextmanager
def web_server() -> Iterator[Server]:
    """Run a web server on a free port."""
    server = Server(0)
    with serving(handler_of(server), host="0.0.0.0") as server.port:
        yield server


@contextlib.contextmanager
def untouched() -> Iterator[int]:
    """Listen on a port of all addresses of this machine, and fail at the end if anyone connected."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as listening:
        yield listening.getsockname()[1]
        listening.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            _, address = listening.accept()
            raise AssertionError(f"{address[0]} connected")


def resolver(*answers: str) -> Callable[..., list[Any]]:
    """Return a getaddrinfo that gives one of the addresses at each call, in order."""
    left = list(answers)

    def getaddrinfo(_host: str, port: int, **_options: Any) -> list[Any]:
        address = left.pop(0)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    return getaddrinfo
