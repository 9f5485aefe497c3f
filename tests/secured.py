"""Broker and ledger as a deployment has them: behind TLS, with a password, as users that may do little.

A pytest plugin (tests/conftest.py names it). The certificates and the proxy are in `tests.tls`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
import redis
import sqlalchemy as sa

from tests.tls import Certificates, tls_before

if TYPE_CHECKING:
    from tests.conftest import Broker
    from tests.postgresql import PostgresqlServer

USER: Final = "mill_user"

#: With what has to be escaped in a URL, and a word in both that nothing else contains.
PASSWORD: Final = "broker-s3cret/@:?#;"
LEDGER_PASSWORD: Final = "ledger-s3cret/@:?#;"

_PROJECT: Final = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# ---- the broker ---------------------------------------------------------------------------------------


def documented_rights() -> list[str]:
    """Return the rights that docs/how-to/deploy.md grants the broker's user, with our password in them."""
    text = (_PROJECT / "docs" / "how-to" / "deploy.md").read_text()
    found = re.search(r"^ACL SETUSER labelmill (.*(?:\n    .*)*)", text, re.MULTILINE)
    assert found, "docs/how-to/deploy.md has no line ACL SETUSER"
    return [right.replace(">PASSWORD", f">{PASSWORD}") for right in found[1].split()]


@dataclass
class TlsBroker:
    """The session's Valkey, reached as a user of its ACL through TLS."""

    port: int
    socket: Path
    client: redis.Redis
    certificates: Certificates
    password: str = PASSWORD

    def url(self, *, database: int = 0, **changes: Any) -> str:
        """The URL as a person would write it; a change with the value None leaves the option out."""
        options = {"ssl_cert_reqs": "required", "ssl_ca_certs": self.certificates.ca} | changes
        query = "&".join(f"{name}={value}" for name, value in options.items() if value is not None)
        return f"rediss://{USER}:{quoted(self.password)}@localhost:{self.port}/{database}?{query}"


def quoted(password: str) -> str:
    """A password as a URL has it."""
    return "".join(f"%{ord(letter):02X}" if not letter.isalnum() else letter for letter in password)


@pytest.fixture
def acl_user(broker: Broker) -> Iterator[Broker]:
    """The user of the ACL that the documents describe."""
    broker.client.execute_command("ACL", "SETUSER", USER, *documented_rights())
    broker.client.acl_log_reset()
    yield broker
    broker.client.acl_deluser(USER)


@pytest.fixture
def tls_broker(acl_user: Broker, certificates: Certificates) -> Iterator[TlsBroker]:
    socket = Path(acl_user.client.get_connection_kwargs()["path"])
    with tls_before(socket, certificates.server(), "redis") as port:
        yield TlsBroker(port, socket, acl_user.client, certificates)


# ---- the ledger ---------------------------------------------------------------------------------------


@pytest.fixture
def guest(postgresql_server: PostgresqlServer, postgresql_url: str) -> Iterator[sa.URL]:
    """A role of the database that may read and write rows and no more, and needs its password; on the Unix
    socket, where everybody else needs none.
    """
    with psycopg.connect(conninfo(postgresql_url), autocommit=True) as admin:
        [path] = admin.execute("SHOW hba_file").fetchone() or ("",)
        before = Path(path).read_text()
        Path(path).write_text(f"local all {USER} scram-sha-256\n{before}")
        admin.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{LEDGER_PASSWORD}'")
        for right in ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES"):
            admin.execute(f"GRANT {right} IN SCHEMA public TO {USER}".encode())
        admin.execute("SELECT pg_reload_conf()")
        try:
            yield sa.make_url(postgresql_url)
        finally:
            Path(path).write_text(before)
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(f"DROP OWNED BY {USER}")
            postgresql_server.execute(f"DROP ROLE {USER}")


def conninfo(url: str) -> str:
    """A ledger's URL as the driver alone takes it."""
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@dataclass
class TlsLedger:
    """The test's database, reached as the guest through TLS."""

    port: int
    database: str
    certificates: Certificates
    password: str = LEDGER_PASSWORD

    def url(self, *, password: str | None = None, **changes: Any) -> str:
        options = {"sslmode": "verify-full", "sslrootcert": self.certificates.ca} | changes
        query = "&".join(f"{name}={value}" for name, value in options.items())
        secret = quoted(password or self.password)
        return f"postgresql://{USER}:{secret}@localhost:{self.port}/{self.database}?{query}"


@pytest.fixture
def tls_ledger(guest: sa.URL, certificates: Certificates) -> Iterator[TlsLedger]:
    socket = Path(str(guest.query["host"])) / ".s.PGSQL.5432"
    with tls_before(socket, certificates.server(), "postgresql") as port:
        yield TlsLedger(port, guest.database or "", certificates)
