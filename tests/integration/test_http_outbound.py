"""Links in a batch over HTTP: redirects and names whose address changes reach no private address."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from jobs.errors import ErrorCode, ImageError
from jobs.ledger import Ledger
from jobs.network import outbound
from jobs.queue import Publisher
from jobs.schema import chunks
from jobs.settings import Settings
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from producer.intake import take_in_next
from tests.web import FORBIDDEN, resolver, untouched, web_server

pytestmark = [
    pytest.mark.usefixtures("champion"),
    pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True),
]

Links = Callable[..., list[object]]


@pytest.fixture
def read_links(
    api: httpx.Client, settings: Settings, ledger: Ledger, store: Store, publisher: Publisher
) -> Links:
    """Return a function that creates a batch of links, and returns the bytes or the error code of each."""

    def read_links(*urls: str, private_hosts: tuple[str, ...] = ()) -> list[object]:
        answer = api.post("/batches", json={"urls": urls})
        assert answer.status_code == 202, answer.text
        own = settings.model_copy(update={"private_hosts": private_hosts})
        assert take_in_next(ledger, store, publisher, own, owner="test")
        query = sa.select(chunks).where(chunks.c.job_id == answer.json()["id"])
        with ledger.reading() as connection:
            row = connection.execute(query).one()
        contents = read_payload(store, row.payload, row.payload_digest).contents
        return [each.code if isinstance(each, ImageError) else each for each in contents]

    return read_links


def test_no_redirect_reaches_a_private_address(read_links: Links) -> None:
    # Given an allowed server that redirects to each private address, and to a file
    with web_server() as server, untouched() as port:
        targets = [f"http://{host}:{port}/a.png" for host in FORBIDDEN if host.isascii()]
        urls = [f"http://{server.host}/to/{target}" for target in (*targets, "file:///etc/passwd")]

        # When the links are a batch, then all are refused after the redirect
        found = read_links(*urls, private_hosts=(server.host,))
        assert found == [ErrorCode.SOURCE_FORBIDDEN] * len(urls)
        assert len(server.asked) == len(urls)


def test_a_link_to_a_name_whose_address_changes(read_links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a name with a public address when it is first looked up, and a private one afterwards
    real, changing = socket.getaddrinfo, resolver("127.0.0.2", "127.0.0.1")

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        return (changing if host == "photos.test" else real)(host, *arguments, **options)

    monkeypatch.setattr(outbound, "is_public", lambda address: address == "127.0.0.2")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    # When it is in two batches, then the first has the image, and the second an error
    with web_server() as server:
        url = f"http://photos.test:{server.port}/a.png"
        assert read_links(url) == [b"pixels"]
        assert read_links(url) == [ErrorCode.SOURCE_FORBIDDEN]

        # And only the address that was checked was reached
        assert server.reached == ["127.0.0.2"]
