"""What the HTTP API refuses, so that one client cannot take it away from the others."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

import httpx
import pytest

from jobs.ledger import Ledger
from jobs.ledger.api import batches as ledger_batches
from jobs.ledger.api.keys import Role, create_key
from jobs.schema import batches
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.server import connections, guards
from labelmill.server.connections import MAX_CONNECTIONS
from labelmill.server.guards import check_host
from labelmill.server.problems import ApiError
from tests.console import until
from tests.serving import connect, drip, lasting, served_locally

Served = Callable[..., httpx.Client]

HEAD = "HTTP/1.1\r\nHost: localhost\r\n"
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.fixture
def key(ledger: Ledger) -> str:
    with ledger.transaction() as connection:
        return create_key(connection, "test", Role.ADMIN)[1]


@pytest.fixture
def served(settings: Settings, store: Store, key: str) -> Iterator[Served]:  # noqa: ARG001
    """Return a function that serves the API with these settings, and returns a client."""
    with contextlib.ExitStack() as stack:

        def serve(**changed: object) -> httpx.Client:
            _, url = stack.enter_context(served_locally(settings.model_copy(update=changed)))
            headers = {"Authorization": f"Bearer {key}"}
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))

        yield serve


def upload(client: httpx.Client, content: bytes) -> httpx.Response:
    return client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})


# ---- hosts and origins --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "local", "status"),
    [
        ("127.0.0.1:8000", "127.0.0.1", None),
        ("localhost", "127.0.0.1", None),
        ("LOCALHOST:1", "::1", None),
        ("[::1]:8000", "127.0.0.1", None),
        ("mill.example.org:8443", "127.0.0.1", None),
        ("evil.example.org", "127.0.0.1", 421),
        ("mill.example.org.evil.example.org", "127.0.0.1", 421),
        ("localhost.evil.example.org", "127.0.0.1", 421),
        ("10.0.0.5:8000", "127.0.0.1", 421),
        # On a network, an address is no name that somebody can let resolve to us: probes of Kubernetes use it
        ("10.0.0.5:8000", "10.0.0.5", None),
        ("[fd00::5]:8000", "fd00::5", None),
        ("evil.example.org", "10.0.0.5", 421),
        ("", "127.0.0.1", 400),
        ("a b", "127.0.0.1", 421),
        ("localhost:8000@evil.example.org", "127.0.0.1", 400),
        ("[::1", "127.0.0.1", 400),
    ],
)
def test_only_requests_for_this_host_are_answered(host: str, local: str, status: int | None) -> None:
    with contextlib.ExitStack() as stack:
        refused = stack.enter_context(pytest.raises(ApiError)) if status else None
        check_host(host, local, {"mill.example.org"})
    assert status is None or (refused and refused.value.status == status)


def test_other_pages_may_use_the_api_only_if_they_are_named(served: Served) -> None:
    asked = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "POST"}
    closed, opened = served(), served(api_origins=("https://app.example.org",))
    assert "access-control-allow-origin" not in closed.options("/v1/batches", headers=asked).headers
    assert "access-control-allow-origin" not in closed.get("/v1/batches", headers=asked).headers
    preflight = opened.options("/v1/batches", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
        HTTPStatus.OK,
        "https://app.example.org",
    )
    other = opened.options("/v1/batches", headers=asked | {"Origin": "https://evil.example.org"})
    assert other.status_code == HTTPStatus.BAD_REQUEST
    # An answer that a guard gives can be read, too
    refused = opened.post("/v1/batches", content=b"{}", headers=asked)
    assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (415, True)


# ---- rates --------------------------------------------------------------------------------------------


def test_a_key_has_a_rate(served: Served) -> None:
    client = served(api_rate=5)
    answers = [client.get("/v1/batches") for _ in range(12)]
    refused = [answer for answer in answers if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS]
    assert 1 <= len(refused) <= 7
    assert answers[0].status_code == HTTPStatus.OK
    assert (refused[0].json()["code"], refused[0].headers["retry-after"]) == ("too_many_requests", "1")
    assert client.get("/healthz").status_code == HTTPStatus.OK


def test_keys_cannot_be_guessed_quickly(served: Served, ledger: Ledger) -> None:
    client = served()

    def guess(number: int) -> int:
        wrong = {"Authorization": f"Bearer labelmill_{number}"}
        return client.get("/v1/batches", headers=wrong).status_code

    answers = [guess(number) for number in range(200)]
    assert answers[0] == HTTPStatus.UNAUTHORIZED
    assert answers.count(HTTPStatus.TOO_MANY_REQUESTS) > 10
    # A key that was never used before still works from this address; a revoked one is a guess after a second
    assert client.get("/v1/batches").status_code == HTTPStatus.OK
    with ledger.transaction() as connection:
        connection.exec_driver_sql("UPDATE api_keys SET revoked_at = created_at")
    time.sleep(1)  # it may have been read just now, and is trusted for so long
    answers = [client.get("/v1/batches").status_code for _ in range(30)]
    assert answers[0] == HTTPStatus.UNAUTHORIZED
    assert HTTPStatus.TOO_MANY_REQUESTS in answers


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/batches", "/nothing"])
def test_strangers_have_a_rate(served: Served, path: str) -> None:
    client = served()
    answers = [client.get(path, headers={"Authorization": ""}).status_code for _ in range(200)]
    assert answers[0] != HTTPStatus.TOO_MANY_REQUESTS
    assert answers.count(HTTPStatus.TOO_MANY_REQUESTS) > 10
    assert client.get("/healthz").status_code == client.get("/v1/batches").status_code == HTTPStatus.OK


@pytest.mark.parametrize("sent", ["", "Authorization: Bearer labelmill_x\r\n"], ids=["no key", "wrong key"])
def test_the_key_is_checked_before_the_body_is_read(served: Served, sent: str) -> None:
    begin = f"POST /v1/batches {HEAD}{sent}Content-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    with connect(str(served().base_url), begin.encode()) as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")


def test_a_body_of_many_lists_is_not_parsed(served: Served) -> None:
    kind = {"Content-Type": "application/json"}
    client = served()
    # A quarter of a second of the parser, in which no other request would be answered
    answer = client.post("/v1/batches", content=b"[" + b"[]," * 340_000 + b"[]]", headers=kind)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = client.post("/v1/batches", content=b"[" + b"[]," * 3_000 + b"[]]", headers=kind)
    assert answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY


def test_one_key_cannot_take_all_connections(served: Served, ledger: Ledger) -> None:
    client = served()
    with ledger.transaction() as connection:
        _, other = create_key(connection, "other", Role.SUBMIT)
    slow = f"POST /v1/classifications {HEAD}Authorization: Bearer {other}\r\nContent-Type: image/png\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            sent = f"{slow}Content-Length: 99999\r\n\r\n".encode()
            stack.enter_context(connect(str(client.base_url), sent))
        paths = ["/v1/batches", "/healthz", "/readyz"] * 20
        assert {client.get(path).status_code for path in paths} == {HTTPStatus.OK}
        # And the key itself is told to wait
        answer = client.get("/v1/batches", headers={"Authorization": f"Bearer {other}"})
        assert (answer.status_code, answer.headers["retry-after"]) == (HTTPStatus.TOO_MANY_REQUESTS, "5")


def test_a_key_has_a_number_of_uploads_at_the_same_time(served: Served, store: Store) -> None:
    client = served(api_uploads=1)
    go_on = threading.Event()

    def body() -> Iterator[bytes]:
        yield FORM
        go_on.wait(60)
        yield b'x\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'

    # Given an upload that has begun
    first: list[httpx.Response] = []
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    thread = threading.Thread(
        target=lambda: first.append(client.post("/v1/files", content=body(), headers=form))
    )
    thread.start()
    until(lambda: bool(store.files("files")), "the first upload is being stored")
    # Then there can be another one only when it has ended
    second = upload(client, b"x")
    assert (second.status_code, second.headers["retry-after"]) == (HTTPStatus.TOO_MANY_REQUESTS, "5")
    go_on.set()
    thread.join()
    assert first[0].status_code == HTTPStatus.OK
    assert upload(client, b"x").status_code == HTTPStatus.OK


# ---- slow and endless ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "more", "status"),
    [
        pytest.param("", b"", None, id="nothing"),
        pytest.param(f"GET /healthz {HEAD}X: ", b"x", None, id="head"),
        pytest.param(f"GET /healthz {HEAD}\r\nGET / {HEAD}X: ", b"x", 200, id="second head"),
        pytest.param(
            f"POST /v1/batches {HEAD}KEYContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n",
            b" ",
            408,
            id="JSON",
        ),
        pytest.param(
            f"POST /v1/files {HEAD}KEYContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: 9999\r\n\r\n{FORM.decode()}",
            b" ",
            408,
            id="upload",
        ),
        pytest.param(
            f"POST /v1/files {HEAD}Transfer-Encoding: chunked\r\n\r\n",
            b"1000\r\n" + bytes(0x1000) + b"\r\n",
            401,
            id="endless body after the answer",
        ),
        pytest.param(
            f"POST /v1/files {HEAD}KEYContent-Type: multipart/form-data; boundary=b\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
            f"{len(FORM):x}\r\n{FORM.decode()}\r\n",
            b"20000\r\n" + bytes(0x20000) + b"\r\n",
            413,
            id="endless upload",
        ),
        pytest.param(f"GET /healthz {HEAD}X: {'x' * 100_000}", b"", 400, id="large head"),
    ],
)
def test_a_client_that_never_ends_is_ended(
    settings: Settings,
    store: Store,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    begin: str,
    more: bytes,
    status: int | None,
) -> None:
    monkeypatch.setattr(guards, "_BODY_SECONDS", 0.5)
    small = settings.model_copy(update={"max_job_bytes": 300_000})
    with served_locally(small, timeout_keep_alive=1) as (_, url):
        sent = begin.replace("KEY", f"Authorization: Bearer {key}\r\n").encode()
        with connect(url, sent) as connection:
            answer = drip(connection, more, seconds=30)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode() if status else b"")
    assert bool(answer) == bool(status)
    # Nothing of an upload is left
    assert store.files("files") == []


@pytest.mark.parametrize("is_reading", [True, False], ids=["head", "answer"])
@pytest.mark.usefixtures("store")
def test_slow_clients_do_not_use_up_the_server(
    settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch, *, is_reading: bool
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        served_locally(settings, timeout_keep_alive=60) as (_, url),
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
        contextlib.ExitStack() as stack,
    ):
        begin = f"GET /healthz {HEAD}X: " if is_reading else download(client, key)
        for _ in range(30):
            stack.enter_context(connect(url, begin.encode(), buffer=4096))
            answer = httpx.get(f"{url}/v1/batches", headers=headers, timeout=60)
            assert answer.status_code == HTTPStatus.OK


@pytest.mark.usefixtures("store")
def test_clients_that_come_together_are_all_served(
    settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    request = f"GET /v1/batches {HEAD}Authorization: Bearer {key}\r\n\r\n".encode()
    with (
        served_locally(settings, timeout_keep_alive=60) as (server, url),
        contextlib.ExitStack() as stack,
    ):
        # Given as many clients that send nothing as there may be connections
        for _ in range(8):
            stack.enter_context(connect(url, b""))
        until(lambda: len(server.server_state.connections) == 8, "the connections are open")
        # When others come at the same time
        [loop] = {each.loop for each in server.server_state.connections}
        loop.call_soon_threadsafe(time.sleep, 0.5)
        new = [stack.enter_context(connect(url, request)) for _ in range(5)]
        # Then each ends another one of these
        assert [each.recv(15) for each in new] == [b"HTTP/1.1 200 OK"] * 5


def download(client: httpx.Client, key: str) -> str:
    """Upload a file that fills all buffers of a connection. Return the request for its bytes."""
    file_id = upload(client, bytes(8_000_000)).json()["id"]
    return f"GET /v1/files/{file_id}/content {HEAD}Authorization: Bearer {key}\r\n\r\n"


@pytest.mark.usefixtures("store")
def test_a_client_that_does_not_read_its_answer_is_ended(
    settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_WRITE_SECONDS", 0.5)
    with served_locally(settings, timeout_keep_alive=60) as (server, url):
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client:
            begin = download(client, key)
        with connect(url, begin.encode(), buffer=4096):
            until(lambda: bool(server.server_state.connections), "the connection is open")
            until(lambda: not server.server_state.connections, "the connection is ended")


@pytest.mark.usefixtures("store")
def test_a_client_that_does_not_wait_for_its_answer_gets_no_other(settings: Settings) -> None:
    request = f"GET /healthz {HEAD}\r\n".encode()
    with served_locally(settings) as (_, url), connect(url, request * 30) as connection:
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "target", ["GET /healthz", "POST /v1/files", "POST /v1/classifications", "POST /v1/batches"]
)
@pytest.mark.usefixtures("store")
def test_a_body_has_one_length(settings: Settings, key: str, target: str) -> None:
    lengths = "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n"
    both = f"{target} {HEAD}Authorization: Bearer {key}\r\n{lengths}\r\n"
    with (
        served_locally(settings, timeout_keep_alive=60) as (_, url),
        connect(url, both.encode()) as connection,
    ):
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_an_offer_of_another_protocol_is_ignored(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    offer = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert served().get("/v1/batches", headers=offer).status_code == HTTPStatus.OK
    assert not caplog.records


@pytest.mark.usefixtures("champion", "store")
def test_a_server_that_is_busy_says_so_and_still_reports_its_health(
    settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    headers = {"Authorization": f"Bearer {key}"}
    waiting = (
        f"POST /v1/classifications?wait=60 {HEAD}Authorization: Bearer {key}\r\nContent-Type: image/png\r\n"
        "Content-Length: 1\r\n\r\nx"
    )
    with served_locally(settings) as (server, url), contextlib.ExitStack() as stack:
        # Given as many requests that wait for labels as there may be connections
        for number in (1, 2):
            stack.enter_context(connect(url, waiting.encode()))
            until(lambda number=number: len(server.server_state.tasks) == number, "the request is served")
        # Then only health is answered
        busy = httpx.get(f"{url}/v1/batches", headers=headers)
        assert (busy.status_code, busy.json()["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable")
        for path in ("/healthz", "/readyz"):
            assert httpx.get(f"{url}{path}").status_code == HTTPStatus.OK


# ---- full ---------------------------------------------------------------------------------------------


def test_a_full_store_is_unavailable(served: Served, store: Store) -> None:
    client = served()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file can be larger, as if the disk was full
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        answer = upload(client, bytes(4_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (answer.status_code, answer.json()["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert store.files("files") == []
    assert upload(client, bytes(4_000_000)).status_code == HTTPStatus.OK


@pytest.mark.usefixtures("champion")
def test_a_full_backlog_is_unavailable(
    served: Served, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_batches, "MAX_WAITING_BATCHES", 2)
    client = served()
    wanted = {"input_file_id": upload(client, b"x").json()["id"]}
    for _ in range(2):
        assert client.post("/v1/batches", json=wanted).status_code == HTTPStatus.ACCEPTED
    refused = client.post("/v1/batches", json=wanted)
    assert (refused.status_code, refused.headers["retry-after"]) == (HTTPStatus.SERVICE_UNAVAILABLE, "60")
    # Until their images are taken in
    with ledger.transaction() as connection:
        connection.execute(batches.update().values(state="done"))
    assert client.post("/v1/batches", json=wanted).status_code == HTTPStatus.ACCEPTED


# ---- the audit ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("champion", "mnist")
def test_what_cannot_be_recorded_is_not_changed(served: Served, ledger: Ledger) -> None:
    client = served()
    wanted = {"input_file_id": upload(client, b"x").json()["id"]}
    batch = client.post("/v1/batches", json=wanted).json()
    path = f"/v1/batches/{batch['id']}"
    with ledger.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE audit RENAME TO hidden")
    for action in ("pause", "cancel"):
        assert client.post(f"{path}/{action}").is_server_error
    assert client.post("/v1/runs", json={}).is_server_error
    assert lasting(client.get(path).json()) == lasting(batch)
    assert client.get("/v1/runs").json()["data"] == []
    with ledger.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO audit")
    # And what is changed is recorded
    for action in ("pause", "resume", "cancel"):
        assert client.post(f"{path}/{action}").status_code == HTTPStatus.OK
    with ledger.reading() as connection:
        actions = list(connection.exec_driver_sql("SELECT action FROM audit ORDER BY id").scalars())
    assert actions[-3:] == ["pause job", "resume job", "cancel job"]
