"""The harnesses that fault tests break: started once for the session, and whole before the next test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.console import folder_for_sockets
from tests.faults.api import Api
from tests.faults.harness import Harness
from tests.faults.servers import FaultyPostgresql
from tests.postgresql import PostgresqlServer


@pytest.fixture(scope="session")
def faulty_postgresql(postgresql_server: PostgresqlServer) -> Iterator[FaultyPostgresql]:  # noqa: ARG001
    """A second PostgreSQL: the session's own is not to be broken. That one is asked for because starting it
    tells the package where to keep its files.
    """
    with folder_for_sockets() as folder, contextlib.closing(FaultyPostgresql(folder / "pg")) as server:
        yield server


@pytest.fixture(scope="session")
def _sqlite_harness() -> Iterator[Harness]:
    with folder_for_sockets() as folder, Harness(folder / "home") as harness:
        yield harness


@pytest.fixture(scope="session")
def _postgresql_harness(faulty_postgresql: FaultyPostgresql) -> Iterator[Harness]:
    url = faulty_postgresql.create("harness")
    with folder_for_sockets() as folder, Harness(folder / "home", ledger_url=url) as harness:
        yield harness


@pytest.fixture
def sqlite_harness(_sqlite_harness: Harness) -> Iterator[Harness]:
    """A worker with two processes on SQLite, where nothing is broken."""
    _sqlite_harness.plan.clear()
    yield _sqlite_harness
    _sqlite_harness.plan.clear()


@pytest.fixture
def postgresql_harness(_postgresql_harness: Harness) -> Iterator[Harness]:
    """A worker with two processes on PostgreSQL, where nothing is broken."""
    _postgresql_harness.plan.clear()
    yield _postgresql_harness
    _postgresql_harness.plan.clear()


@pytest.fixture
def harnesses(sqlite_harness: Harness, postgresql_harness: Harness) -> list[Harness]:
    """Both at once: a trial that waits for a lease or a restart waits on both together."""
    return [sqlite_harness, postgresql_harness]


@pytest.fixture(scope="session")
def _postgresql_api(_postgresql_harness: Harness) -> Iterator[Api]:
    with contextlib.closing(Api(_postgresql_harness)) as api:
        yield api


@pytest.fixture
def postgresql_api(postgresql_harness: Harness, _postgresql_api: Api) -> Api:  # noqa: ARG001 -- nothing broken
    """The HTTP API of the harness on PostgreSQL."""
    return _postgresql_api
