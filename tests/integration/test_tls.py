"""Broker and ledger work behind TLS, with passwords and restricted users, by settings alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from jobs.errors import ASK_THE_DOCTOR
from jobs.ledger import Ledger
from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import Publisher, make_app
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.store import Store
from tests.console import Home, until
from tests.harness import digits
from tests.registering import register_digits
from tests.secured import PASSWORD, USER, TlsBroker, TlsLedger
from tests.tls import tls_before

# ---- the broker ---------------------------------------------------------------------------------------


def publisher_for(url: str) -> Publisher:
    return Publisher(make_app(Settings.load(broker_url=url)))


def test_an_rediss_url_without_options_checks_the_certificate(tls_broker: TlsBroker) -> None:
    # given a server whose CA the system does not know; kombu alone would not verify it
    with contextlib.closing(
        publisher_for(tls_broker.url(ssl_cert_reqs=None, ssl_ca_certs=None))
    ) as publisher:
        assert publisher.wake_up() == 0
        assert "certificate verify failed" in publisher.reason


def test_who_wants_no_check_has_to_say_so(tls_broker: TlsBroker) -> None:
    unchecked = tls_broker.url(ssl_cert_reqs="none", ssl_ca_certs=None)
    with contextlib.closing(publisher_for(unchecked)) as publisher:
        assert publisher.wake_up() == 1


def test_a_server_that_wants_a_certificate_of_its_client_gets_one(tls_broker: TlsBroker) -> None:
    certificates = tls_broker.certificates
    with tls_before(tls_broker.socket, certificates.server(wants_client=True), "redis") as port:
        server = replace(tls_broker, port=port)
        ours = {"ssl_certfile": certificates.client_cert, "ssl_keyfile": certificates.client_key}
        with contextlib.closing(publisher_for(server.url(**ours))) as publisher:
            assert publisher.wake_up() == 1
        with contextlib.closing(publisher_for(server.url())) as publisher:
            assert publisher.wake_up() == 0


def test_the_documented_rights_are_enough_for_all_that_kombu_does_with_messages(
    tls_broker: TlsBroker,
) -> None:
    # given two messages, in a database of their own
    app = make_app(Settings.load(broker_url=tls_broker.url(database=1)))
    publisher = Publisher(app)
    assert publisher.wake_up(2) == 2

    # when they are acknowledged, rejected, and restored after a timeout and after a stop
    with app.connection_for_read() as connection:
        channel = connection.channel()
        got: list[Any] = []

        def take() -> Any:
            until(lambda: _drained(connection, got), "a message arrives", seconds=60)
            return got.pop()

        with app.amqp.TaskConsumer(channel, accept=["json"], on_message=got.append):
            take().ack()
            take().reject(requeue=True)
            take()
            channel.qos.visibility_timeout = -1  # as if the timeout had passed
            channel.qos.restore_visible(interval=1)
            take()
            channel.qos.restore_unacked_once()
        channel._lookup(
            CLASSIFY_QUEUE, CLASSIFY_QUEUE, default=""
        )  # kombu looks this up for a message with an exchange
        with pytest.raises(ZeroDivisionError):  # a transaction that fails
            channel.client.transaction(lambda _pipe: 1 / 0, channel.unacked_key)

    # then no command was refused, and one message still waits
    assert publisher.waiting() == 1
    publisher.close()
    app.close()
    assert tls_broker.client.acl_log() == []


def _drained(connection: Any, got: list[Any]) -> bool:
    with contextlib.suppress(TimeoutError, OSError):
        connection.drain_events(timeout=0.5)
    return bool(got)


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET requirepass", "ACL LIST", "CLIENT LIST",
        "EVAL return{} 0", "SHUTDOWN", "REPLICAOF NO ONE", "MODULE LIST", "MONITOR",
        "SAVE", "PUBLISH labelmill:x 1", "GET others", "LPUSH others 1", "SET others 1",
    ],
)  # fmt: skip
def test_the_documented_rights_are_not_for_anything_else(tls_broker: TlsBroker, command: str) -> None:
    options = {"username": USER, "password": PASSWORD, "ssl": True}
    certificates = tls_broker.certificates
    with (
        contextlib.closing(
            redis.Redis("localhost", tls_broker.port, ssl_ca_certs=str(certificates.ca), **options)
        ) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command.split())


# ---- a whole deployment -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_job_through_tls_with_users_that_may_do_little(
    short_folder: Path, model_file: bytes, postgresql_url: str, tls_broker: TlsBroker, tls_ledger: TlsLedger
) -> None:
    # given a deployment with a model, and both services behind TLS
    urls = {ENV_PREFIX + "BROKER_URL": tls_broker.url(), ENV_PREFIX + "LEDGER_URL": tls_ledger.url()}
    home, log = Home(short_folder / "home", urls), short_folder / "up.log"
    with contextlib.closing(Ledger(postgresql_url)) as ledger:
        register_digits(ledger, Store(Settings.load(home=home.path).store), model_file, champion=True)
    (short_folder / "seven.png").write_bytes(digits(8)[7])

    # when a job is submitted and finished there
    with home.started("up", log=log):
        home.ok("submit", short_folder / "seven.png", "--watch")

    # then no command was refused, and no secret was logged
    assert tls_broker.client.acl_log() == []
    assert "s3cret" not in log.read_text()


# ---- wrong settings -----------------------------------------------------------------------------------


#: What is wrong with the certificate of a server.
WRONG_SERVERS: dict[str, dict[str, Any]] = {
    "host": {"name": "elsewhere.example.org"},
    "expired": {"days": -1},
}


@pytest.fixture
def wrong_broker_url(request: pytest.FixtureRequest, tls_broker: TlsBroker) -> Iterator[str]:
    """Return a URL that does not fit the server: with another `ca` or `password`, or a wrong server."""
    certificates = tls_broker.certificates
    if request.param == "ca":
        yield tls_broker.url(ssl_ca_certs=certificates.other_ca)
    elif request.param == "password":
        yield replace(tls_broker, password="another-s3cret").url()
    else:
        server = certificates.server(**WRONG_SERVERS[request.param])
        with tls_before(tls_broker.socket, server, "redis") as port:
            yield replace(tls_broker, port=port).url()


@pytest.mark.parametrize(
    ("wrong_broker_url", "reason"),
    [
        ("ca", "certificate verify failed: unable to get local issuer certificate"),
        ("host", "certificate verify failed: Hostname mismatch"),
        ("expired", "certificate verify failed: certificate has expired"),
        ("password", "invalid username-password pair"),
    ],
    indirect=["wrong_broker_url"],
)
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.usefixtures("champion")
def test_a_broker_that_does_not_fit_is_told_in_a_line(
    home: Home, tmp_path: Path, wrong_broker_url: str, reason: str
) -> None:
    # given a deployed broker, and a setting that does not fit it
    home.extra[ENV_PREFIX + "BROKER_URL"] = wrong_broker_url

    # when an image is submitted, then the job waits, and a line says why
    (tmp_path / "seven.png").write_bytes(digits(1)[0])
    done = home.run("submit", tmp_path / "seven.png")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "broker" in line]
    assert reason in line
    assert "waits in the ledger" in line
    assert_tells_no_more_than_it_should(done.stderr)


@pytest.fixture
def wrong_ledger_url(request: pytest.FixtureRequest, guest: sa.URL, tls_ledger: TlsLedger) -> Iterator[str]:
    """Return a URL that does not fit the server: with another `ca` or `password`, or a wrong server."""
    certificates = tls_ledger.certificates
    if request.param == "ca":
        yield tls_ledger.url(sslrootcert=certificates.other_ca)
    elif request.param == "password":
        yield replace(tls_ledger, password="another-s3cret").url()
    else:
        socket = Path(str(guest.query["host"])) / ".s.PGSQL.5432"
        server = certificates.server(**WRONG_SERVERS[request.param])
        with tls_before(socket, server, "postgresql") as port:
            yield replace(tls_ledger, port=port).url()


@pytest.mark.parametrize(
    ("wrong_ledger_url", "reason", "commands"),
    [
        ("ca", "certificate verify failed", ["jobs", "worker", "up", "submit"]),
        ("host", "does not match host name", ["jobs"]),
        ("expired", "certificate verify failed: it has expired on ", ["jobs"]),
        ("password", "password authentication failed", ["jobs"]),
    ],
    indirect=["wrong_ledger_url"],
)
def test_a_ledger_that_does_not_fit_is_told_in_a_line_with_what_to_do(
    short_folder: Path, wrong_ledger_url: str, reason: str, commands: list[str]
) -> None:
    home = Home(short_folder / "home", {ENV_PREFIX + "LEDGER_URL": wrong_ledger_url})
    for command in commands:
        done = home.run(*([command, __file__] if command == "submit" else [command]))
        assert done.returncode == 1
        line, *advice = done.stderr.splitlines()
        assert line.startswith("labelmill: The ledger cannot be reached: ")
        assert advice == ([] if line.endswith("Renew it.") else [ASK_THE_DOCTOR])
        assert reason in line
        assert_tells_no_more_than_it_should(done.stderr)


def assert_tells_no_more_than_it_should(text: str) -> None:
    assert "Traceback" not in text
    assert "s3cret" not in text
