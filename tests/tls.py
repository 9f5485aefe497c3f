"""TLS in front of servers that were built without it: certificates, and a proxy that ends the TLS.

The Valkey and the PostgreSQL of the packages speak plainly, on a Unix socket. What is tested is our side:
what the settings ask for, and what becomes of a certificate that does not fit. The certificates and the
handshakes are real; only the server's end of them is in another process, this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import trustme

Protocol = Literal["redis", "postgresql"]

#: PostgreSQL's SSLRequest: its length, and a version number that no version has.
_SSL_REQUEST: Final = bytes.fromhex("0000000804d2162f")


class Certificates:
    """A CA, another one that nobody should trust, and the certificates of a server and of a client."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self.other_ca = folder / "other-ca.pem"
        self.client_cert = folder / "client.pem"
        self.client_key = folder / "client.key"
        self._ca.cert_pem.write_to_path(str(self.ca))
        trustme.CA().cert_pem.write_to_path(str(self.other_ca))
        client = self._ca.issue_cert("client@example.org")
        client.cert_chain_pems[0].write_to_path(str(self.client_cert))
        client.private_key_pem.write_to_path(str(self.client_key))

    def server(
        self, name: str = "localhost", *, wants_client: bool = False, days: float = 365
    ) -> ssl.SSLContext:
        """Return the TLS context of the server `name`, whose certificate expires in so many days."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        until = datetime.now(UTC) + timedelta(days=days)
        self._ca.issue_cert(name, not_before=until - timedelta(days=400), not_after=until).configure_cert(
            context
        )
        if wants_client:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@contextlib.contextmanager
def tls_before(socket: Path, context: ssl.SSLContext, protocol: Protocol) -> Iterator[int]:
    """A port of localhost that speaks TLS, and plainly with the server behind the Unix socket."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tls proxy")
    thread.start()
    try:
        proxy = _Proxy(socket, context, protocol)
        port = _in_thread(loop, proxy.start())
        yield port
        _in_thread(loop, proxy.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _in_thread(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)


class _Proxy:
    def __init__(self, socket: Path, context: ssl.SSLContext, protocol: Protocol) -> None:
        self._socket = socket
        self._context = context
        self._protocol = protocol
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A client that does not like what it sees goes away at any moment of this.
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._protocol == "postgresql":
            if await reader.readexactly(len(_SSL_REQUEST)) != _SSL_REQUEST:
                return  # who speaks plainly is not heard
            writer.write(b"S")
            await writer.drain()
        await writer.start_tls(self._context)
        behind_reader, behind_writer = await asyncio.open_unix_connection(str(self._socket))
        there = asyncio.create_task(_pump(reader, behind_writer))
        back = asyncio.create_task(_pump(behind_reader, writer))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            behind_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
