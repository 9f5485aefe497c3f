"""The remote client against a server of this process: TLS, and answers that ask to wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme
import uvicorn

import labelmill
from jobs.ledger import Ledger
from jobs.ledger.api.files import list_files
from jobs.ledger.api.keys import Role, create_key
from jobs.models.model import Model
from jobs.queue import Publisher
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import http
from labelmill.client.remote import RemoteClient
from labelmill.server.application import create_app
from labelmill.server.serving import listen_on
from producer.sources import SourceImage
from tests.console import until
from tests.intake import take_in_next


@contextmanager
def serving(settings: Settings, **options: str) -> Iterator[int]:
    """Serve the API in a thread; yield its port."""
    with listen_on("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None, **options))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def key(ledger: Ledger) -> str:
    with ledger.transaction() as connection:
        return create_key(connection, "laptop", Role.SUBMIT)[1]


@pytest.fixture
def url(settings: Settings, champion: Model) -> Iterator[str]:  # noqa: ARG001
    with serving(settings) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def remote(url: str, key: str) -> Iterator[RemoteClient]:
    with labelmill.connect(url, key=key) as client:
        yield client


def test_the_servers_certificate_is_checked(
    settings: Settings, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, certificate = trustme.CA(), tmp_path / "server.pem"
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    with serving(settings, ssl_certfile=str(certificate)) as port:
        url = f"https://127.0.0.1:{port}"
        with labelmill.connect(url, key=key) as client:
            began = time.monotonic()
            with pytest.raises(labelmill.Unavailable, match=r"cannot be trusted: .*SSL_CERT_FILE"):
                client.jobs()
            assert time.monotonic() - began < 5  # it is not repeated
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with labelmill.connect(url, key=key) as client:
            assert client.jobs() == []


def test_the_uploaded_file_is_gone_when_its_images_are_taken_in(
    remote: RemoteClient, ledger: Ledger, store: Store, publisher: Publisher, settings: Settings
) -> None:
    limits = labelmill.ErrorLimits(rate=0.5, sample=10)
    job = remote.submit(b"one image", b"another", error_limits=limits, priority=5)
    assert remote.status(job).state == "receiving"
    assert take_in_next(ledger, store, publisher, settings, owner="test")
    status = remote.status(job)
    assert (status.total, status.state) == (2, "running")
    assert store.files("files") == []
    with ledger.reading() as connection:
        assert list_files(connection, "default", limit=1) == []
    # Also if the job is cancelled before: then a purge removes the bytes
    remote.cancel(remote.submit(b"one image"))
    assert take_in_next(ledger, store, publisher, settings, owner="test") is False
    with ledger.reading() as connection:
        assert list_files(connection, "default", limit=1) == []


def test_a_file_that_two_batches_need_stays_for_the_second(
    remote: RemoteClient, ledger: Ledger, store: Store, publisher: Publisher, settings: Settings
) -> None:
    api = remote._api
    file = api.upload("a.png", lambda: [b"an image"])["id"]
    for number in range(2):
        body = {"input_file_id": file, "delete_input": True}
        api.request("POST", "/batches", body=body, idempotency_key=str(number))
    while take_in_next(ledger, store, publisher, settings, owner="test"):
        pass
    assert [job.total for job in remote.jobs()] == [1, 1]
    assert store.files("files") == []


def test_images_that_fail_while_they_are_uploaded_leave_nothing(remote: RemoteClient, store: Store) -> None:
    def images() -> Iterator[SourceImage]:
        yield SourceImage("a.png", bytes(1_000_000), None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.submission(images())
    assert remote.jobs() == []
    until(lambda: store.files("files") == [], "the server has noticed")


def breaks_once(remote: RemoteClient) -> Iterator[SourceImage]:
    """Yield images; the connection breaks between them."""
    yield SourceImage("a.png", bytes(1_000_000), None)
    (connection,) = remote._api._client._transport._pool.connections  # type: ignore[attr-defined]
    stream = connection._connection._network_stream
    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    yield SourceImage("b.png", bytes(1_000_000), None)


def test_an_upload_that_breaks_is_repeated_whole_or_not_at_all(remote: RemoteClient, store: Store) -> None:
    # Given images that can be read only once, then their rest is not submitted
    with pytest.raises(labelmill.Unavailable, match="cannot be read again"):
        remote.submission(breaks_once(remote))
    assert remote.jobs() == []
    until(lambda: store.files("files") == [], "the server has noticed")

    # And given images that can be read again, then they are
    class Images:
        reads = 0

        def __iter__(self) -> Iterator[SourceImage]:
            self.reads += 1
            whole = [SourceImage(f"{number}.png", b"image", None) for number in range(3)]
            return breaks_once(remote) if self.reads == 1 else iter(whole)

    assert remote.submission(Images()).images == 3
    assert len(remote.jobs()) == 1
    until(lambda: len(store.files("files")) == 1, "the server has noticed")


class AsksToWait(BaseHTTPRequestHandler):
    """Answers the first request with 429, and the second with a page without jobs."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        first = self.requests == 1
        body = b'{"detail": "Too many."}' if first else b'{"data": [], "has_more": false}'
        self.send_response(429 if first else 200)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_that_asks_to_wait_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PAUSES", (0.0, 0.0))
    with HTTPServer(("127.0.0.1", 0), AsksToWait) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        reasons: list[str] = []
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with RemoteClient(url, "labelmill_key", on_retry=reasons.append) as client:
            began = time.monotonic()
            assert client.jobs() == []
            assert time.monotonic() - began >= 1
        server.shutdown()
        thread.join()
    assert reasons == [f"{url} cannot serve this now (429): Too many."]


def test_an_answer_that_is_not_the_apis_is_explained() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with (
            RemoteClient(url, "labelmill_key") as client,
            pytest.raises(labelmill.LabelmillError, match="check LAB"),
        ):
            client.jobs()
        server.shutdown()
        thread.join()
    with pytest.raises(labelmill.Unavailable, match=r"no-such-host.invalid cannot be reached: .* Check"):
        RemoteClient("https://no-such-host.invalid", "labelmill_key").jobs()
    for url, key in (("nonsense", "key"), ("https://host", "a key\n")):
        with pytest.raises(labelmill.UserError):
            labelmill.connect(url, key=key)


def test_a_condition_of_zero_is_sent(remote: RemoteClient, submitted, worker) -> None:
    job = submitted(3)
    worker.work(job.chunks[0])
    assert len(list(remote.predictions(job.id, errors=False))) == 3
    assert list(remote.predictions(job.id, below=0.0)) == []
    assert list(remote.predictions(job.id, errors=True)) == []
