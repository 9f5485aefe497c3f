"""Check before migration 0021 what PostgreSQL would otherwise check during it, while all readers wait.

A table of any size becomes a partition at once if a validated constraint says that its rows are within the
partition's bounds. Validating it reads all rows, but readers and writers continue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ids import first_id, id_seconds
from jobs.ledger import Ledger
from migrations import LOCK_TIMEOUT

#: The constraint's name.
BOUND = "bound_until_upgraded"

#: For this many weeks, new jobs still go to the partition with the old ones. The constraint refuses
#: predictions of later jobs, which matters only if an upgrade was killed and nobody repeats it.
WEEKS = 5

WEEK_SECONDS = 7 * 86_400


def bound_of(connection: Connection) -> str:
    """Return the lowest id beyond the first partition: this week's lowest if there are no rows."""
    week = time.time() // WEEK_SECONDS
    latest = connection.scalar(sa.text("SELECT max(job_id) FROM predictions"))
    if latest is not None:  # its producer's clock may have been wrong
        week = max(week + WEEKS, id_seconds(latest) // WEEK_SECONDS + 1)
    return first_id(week * WEEK_SECONDS)


@contextmanager
def bounded(ledger: Ledger) -> Iterator[None]:
    """Run the body, which migrates, with the constraint in place if it is needed. Raises Unavailable."""
    if not _has_one_table_with_rows(ledger):
        yield
        return
    _drop(ledger)  # an interrupted upgrade left it
    with _altering(ledger) as connection:
        bound = bound_of(connection)
        connection.execute(
            sa.text(f"ALTER TABLE predictions ADD CONSTRAINT {BOUND} CHECK (job_id < '{bound}') NOT VALID")
        )
    try:
        with _altering(ledger) as connection:
            connection.execute(sa.text(f"ALTER TABLE predictions VALIDATE CONSTRAINT {BOUND}"))
        yield
    finally:
        # If this fails, too, the first error says what is wrong, and the next upgrade drops it.
        with suppress(Unavailable):
            if _has_one_table_with_rows(ledger):  # it was not migrated
                _drop(ledger)


def _has_one_table_with_rows(ledger: Ledger) -> bool:
    """Return whether PostgreSQL has predictions in a table that is not partitioned."""
    if ledger.is_sqlite:
        return False
    kind = sa.text("SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass('predictions')")
    rows = sa.text("SELECT EXISTS (SELECT FROM predictions)")
    with ledger.reading() as connection:
        return bool(connection.scalar(kind)) and bool(connection.scalar(rows))


def _drop(ledger: Ledger) -> None:
    with _altering(ledger) as connection:
        connection.execute(sa.text(f"ALTER TABLE predictions DROP CONSTRAINT IF EXISTS {BOUND}"))


@contextmanager
def _altering(ledger: Ledger) -> Iterator[Connection]:
    with ledger.transaction() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        yield connection
