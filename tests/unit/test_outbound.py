"""A URL that a user named reaches the public internet and allowed hosts, and nothing else."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import trustme

from jobs.errors import AddressForbidden, Unavailable
from jobs.network import outbound
from jobs.network.outbound import check_url, is_public, request
from tests.web import FORBIDDEN, Server, handler_of, resolver, web_server


@pytest.fixture
def server() -> Iterator[Server]:
    with web_server() as server:
        yield server


# ---- which addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", FORBIDDEN)
def test_an_address_that_is_not_public_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(AddressForbidden):
        request("GET", f"http://{host}/", timeout=5, max_bytes=10)
    with pytest.raises(AddressForbidden):
        check_url(f"https://{host}:8443/a.png")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "gopher://example.org/",
        "//example.org/a.png",
        "/etc/passwd",
        "http://",
        "http:///a.png",
        "http://user@example.org/",
        "http://user:s3cret@example.org/",
        "http://example.org\\@127.0.0.1/",
        "http://example.org/\r\nX: 1",
        "http://example.org:port/",
        "http://example.org:99999/",
        "http://[::1/",
        "http://example.org/\ud800",
        f"http://{'ä' * 300}/",
    ],
)
def test_a_url_that_is_not_plainly_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(AddressForbidden) as caught:
        request("GET", url, timeout=5, max_bytes=10)
    assert "s3cret" not in str(caught.value)


def test_one_private_address_among_a_hosts_addresses_is_enough(monkeypatch) -> None:
    public, private = resolver("8.8.8.8")("", 80), resolver("10.0.0.1")("", 80)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: public + private)
    with pytest.raises(AddressForbidden, match=r"photos\.test is not on the public internet"):
        check_url("http://photos.test/")


def test_a_host_that_is_allowed_may_be_private_on_that_port_only(server: Server) -> None:
    assert server.get("/a.png").body == b"pixels"
    assert server.get("/a.png", private=["127.0.0.1"]).body == b"pixels"
    for other in (f"127.0.0.1:{server.port + 1}", "localhost", f"localhost:{server.port}"):
        with pytest.raises(AddressForbidden):
            server.get("/a.png", private=[other])
    assert len(server.asked) == 2


def test_the_connection_goes_to_the_address_that_was_checked(server: Server, monkeypatch) -> None:
    # Given a name that has a public address when it is first asked for, and a private one afterwards
    monkeypatch.setattr(outbound, "is_public", lambda address: address == "127.0.0.2")
    monkeypatch.setattr(socket, "getaddrinfo", resolver("127.0.0.2", "127.0.0.1", "127.0.0.1"))

    # When it is requested
    request("GET", f"http://photos.test:{server.port}/a.png", timeout=5, max_bytes=10)

    # Then the server was reached at the first address, by its name
    assert server.reached == ["127.0.0.2"]
    assert [host for _, _, host, _ in server.asked] == [f"photos.test:{server.port}"]

    # And the next request sees the private address
    with pytest.raises(AddressForbidden):
        request("GET", f"http://photos.test:{server.port}/a.png", timeout=5, max_bytes=10)
    assert len(server.asked) == 1


def test_a_proxy_in_the_environment_is_not_used(server: Server, monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert server.get("/a.png").body == b"pixels"


# ---- TLS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("certified", ["photos.test", "other.test"])
def test_the_certificate_must_be_of_the_name_and_not_of_the_address(
    certified: str, tmp_path: Path, monkeypatch
) -> None:
    # Given a server with a trusted certificate for a name
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(outbound, "_tls", lambda: ssl.create_default_context())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(context)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = Server(0)
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    listening.daemon_threads = True
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    listening.handle_error = lambda *_arguments: None  # type: ignore[method-assign]
    thread = Thread(target=listening.serve_forever)
    thread.start()

    # When photos.test, which is at its address, is requested
    port = listening.server_address[1]
    monkeypatch.setattr(socket, "getaddrinfo", resolver("127.0.0.1"))
    try:
        ask = lambda: request(  # noqa: E731
            "GET", f"https://photos.test:{port}/a", timeout=5, max_bytes=10, private=["photos.test"]
        )
        # Then it answers only if the certificate is for that name
        if certified == "photos.test":
            assert ask().body == b"pixels"
        else:
            with pytest.raises(Unavailable, match="certificate"):
                ask()
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
    assert names == ["photos.test"]


# ---- redirects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["http://localhost:{port}/a.png", "http://[::1]/", "file:///etc/passwd", "//10.0.0.1/", "http://["],
)
def test_a_redirect_to_a_forbidden_address_is_refused(server: Server, target: str) -> None:
    with pytest.raises(AddressForbidden):
        server.get(f"/to/{target.format(port=server.port)}", redirects=5)
    assert len(server.asked) == 1


def test_redirects_are_followed_as_often_as_allowed(server: Server) -> None:
    # Given a page that redirects to another one
    path = "/to//to//a.png"

    # When it is requested with enough redirects, Then the last page answers
    answer = server.get(path, redirects=2)
    assert (answer.status, answer.body) == (200, b"pixels")

    # And with too few, or none, the redirect is the answer
    for redirects, location in ((1, "/a.png"), (0, "/to//a.png")):
        answer = server.get(path, redirects=redirects)
        assert (answer.status, answer.headers["location"]) == (302, location)


def test_headers_do_not_follow_to_another_server(server: Server, monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver("127.0.0.1", "127.0.0.1", "127.0.0.1"))
    answer = request(
        "POST",
        f"http://first.test:{server.port}/to//to/http://second.test:{server.port}/a.png",
        headers={"Authorization": "Bearer word"},
        body=b"order",
        timeout=5,
        max_bytes=10,
        redirects=2,
        private=["first.test", "second.test"],
    )
    assert answer.status == 200
    assert [asked.get("Authorization") for asked in server.headers] == ["Bearer word", "Bearer word", None]
    assert [(method, body) for method, _, _, body in server.asked] == [
        ("POST", b"order"),
        ("GET", b""),
        ("GET", b""),
    ]


# ---- limits -------------------------------------------------------------------------------------------


def test_no_more_is_read_than_allowed_and_one_byte(server: Server) -> None:
    assert server.get("/a.png", max_bytes=6).body == b"pixels"
    assert len(server.get("/a.png", max_bytes=5).body) == 6
    assert len(server.get("/endless", max_bytes=1_000_000).body) == 1_000_001


@pytest.mark.parametrize("path", ["/slow/header", "/slow/body"])
def test_all_of_it_has_one_deadline_even_if_some_bytes_always_come(server: Server, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"no answer in time|timed out"):
        server.get(path, timeout=0.5)
    assert time.monotonic() - started < 2


def test_a_server_that_cannot_be_reached_or_breaks_off_is_unavailable(server: Server) -> None:
    with pytest.raises(Unavailable, match="without sending complete message body"):
        server.get("/short")
    with pytest.raises(Unavailable, match="cannot be reached"):
        request("GET", "http://no-such-host.invalid/", timeout=5, max_bytes=10)
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="refused"):
            request(
                "GET",
                f"http://127.0.0.1:{closed.getsockname()[1]}/a.png?key=word",
                timeout=5,
                max_bytes=10,
                private=["127.0.0.1"],
            )


def test_a_path_with_spaces_and_letters_of_all_languages_is_sent_in_percent_form(server: Server) -> None:
    server.get("/a b/ä.png?q=ü 1&p=%20")
    assert server.asked[0][1] == "/a%20b/%C3%A4.png?q=%C3%BC%201&p=%20"
