"""The real exporter, as Prometheus and others ask it."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

import pytest

from jobs.settings import Settings
from labelmill.server.exporter import MAX_CONNECTIONS
from tests.scraping import exporter, scrape


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_clients_that_send_half_a_request_keep_nobody_out(settings: Settings) -> None:
    with exporter(settings) as port, ExitStack() as stack:
        # Given many connections, each with half a request
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(80)
        ]
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        # Then a scrape is answered, and all connections but the newest are closed
        scrape(port)
        for client in clients[: len(clients) - MAX_CONNECTIONS]:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
