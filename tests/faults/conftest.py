"""The mills that fault tests break: started once for the session, and whole again before the next test."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PostgresqlServer
from tests.console import Home
from tests.faults.mill import Mill
from tests.faults.pictures import Picture
from tests.faults.servers import FaultyPostgresql


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Its path is short enough for a Unix socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="lm-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def faulty_postgresql(postgresql_server: PostgresqlServer) -> Iterator[FaultyPostgresql]:  # noqa: ARG001
    """A second PostgreSQL: the session's own is not to be broken. That one is asked for because starting it
    tells the package where to keep its files.
    """
    with short_folder() as folder, contextlib.closing(FaultyPostgresql(folder / "pg")) as server:
        yield server


@pytest.fixture(scope="session")
def _sqlite_mill() -> Iterator[Mill]:
    with short_folder() as folder, Mill(folder / "home") as mill:
        yield mill


@pytest.fixture(scope="session")
def _postgresql_mill(faulty_postgresql: FaultyPostgresql) -> Iterator[Mill]:
    url = faulty_postgresql.create("mill")
    with short_folder() as folder, Mill(folder / "home", ledger_url=url) as mill:
        yield mill


@pytest.fixture
def sqlite_mill(_sqlite_mill: Mill) -> Iterator[Mill]:
    """A worker with two processes on SQLite, where nothing is broken."""
    _sqlite_mill.plan.clear()
    yield _sqlite_mill
    _sqlite_mill.plan.clear()


@pytest.fixture
def postgresql_mill(_postgresql_mill: Mill) -> Iterator[Mill]:
    """A worker with two processes on PostgreSQL, where nothing is broken."""
    _postgresql_mill.plan.clear()
    yield _postgresql_mill
    _postgresql_mill.plan.clear()


@pytest.fixture
def mills(sqlite_mill: Mill, postgresql_mill: Mill) -> list[Mill]:
    """Both at once: a trial that waits for a lease or a restart waits on both together."""
    return [sqlite_mill, postgresql_mill]


@pytest.fixture
def little_digits(few_digits: Path, trained: Home) -> list[Picture]:
    """Fifty real digits ten times over, and what the trained model says of them when nothing goes wrong."""
    paths = sorted(few_digits.rglob("*.png"))
    job = trained.ok("classify", few_digits, "--json")
    said = {Path(row["name"]).name: row["label"] for row in map(json.loads, job.splitlines())}
    return [
        Picture(f"{time}/{path.name}", path.read_bytes(), said[path.name])
        for time in range(10)
        for path in paths
    ]


@pytest.fixture
def keras_mill(new_home: Home) -> Iterator[Mill]:
    """A worker whose processes hold TensorFlow and the trained model, on SQLite."""
    with Mill(new_home.path, keras=True, lease_seconds=10.0) as mill:
        yield mill
