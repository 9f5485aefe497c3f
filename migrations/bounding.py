"""Check before an upgrade what PostgreSQL would otherwise check during it, while readers and writers wait.

A table of any size becomes a partition at once (migration 0021) if a validated constraint says that its rows
are within the partition's bounds. In the same way, new partitions are added at once if such a constraint says
that the default partition has no rows of theirs. Validating it reads all rows, but readers and writers
continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ids import first_id
from jobs.ledger import Ledger
from jobs.ledger.partitions import WEEK_SECONDS, first_free_week, weeks_due
from migrations import LOCK_TIMEOUT

#: The constraint's name. It refuses predictions of jobs that come weeks later, which matters only if an
#: upgrade was killed and nobody repeats it.
BOUND = "bound_until_upgraded"

_IS_ONE_TABLE = sa.text("SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass('predictions')")

_CONSTRAINED = sa.text("""
    SELECT conrelid::regclass::text FROM pg_constraint
    WHERE conname = :name AND conrelid IN (to_regclass('predictions'), to_regclass('predictions_default'))
""")


def bound_of(connection: Connection) -> str:
    """Return the lowest id beyond the first partition, which takes all rows of the table."""
    latest = connection.scalar(sa.text("SELECT max(job_id) FROM predictions"))
    return first_id(first_free_week(latest) * WEEK_SECONDS)


@contextmanager
def bounded(ledger: Ledger) -> Iterator[None]:
    """Run the body, which upgrades, with the constraint in place if it is needed. Raises Unavailable."""
    if ledger.is_sqlite:
        yield
        return
    _drop(ledger)  # an interrupted upgrade left it
    with ledger.reading() as connection:
        needed = _needed(connection)
    if needed is None:
        yield
        return
    table, condition = needed
    try:
        with _altering(ledger) as connection:
            add = f"ALTER TABLE {table} ADD CONSTRAINT {BOUND} CHECK ({condition}) NOT VALID"
            connection.execute(sa.text(add))
        with _altering(ledger) as connection:
            connection.execute(sa.text(f"ALTER TABLE {table} VALIDATE CONSTRAINT {BOUND}"))
        yield
    finally:
        # If it fails, the next upgrade drops it. After a success, it excludes only rows that have partitions.
        with suppress(Unavailable):
            _drop(ledger)


def _needed(connection: Connection) -> tuple[str, str] | None:
    """Return the table that needs the constraint and the condition, or None if there are no rows to check."""
    if connection.scalar(_IS_ONE_TABLE):
        table, condition = "predictions", f"job_id < '{bound_of(connection)}'"
    elif weeks := weeks_due(connection):
        first, beyond = (first_id(week * WEEK_SECONDS) for week in (weeks.start, weeks.stop))
        table, condition = "predictions_default", f"job_id < '{first}' OR job_id >= '{beyond}'"
    else:
        return None
    has_rows = connection.scalar(sa.select(sa.true()).select_from(sa.table(table)).limit(1))
    return (table, condition) if has_rows else None


def _drop(ledger: Ledger) -> None:
    """Drop the constraint from the table that has it, if any."""
    with _altering(ledger) as connection:
        for table in connection.scalars(_CONSTRAINED, {"name": BOUND}).all():
            connection.execute(sa.text(f"ALTER TABLE {table} DROP CONSTRAINT {BOUND}"))


@contextmanager
def _altering(ledger: Ledger) -> Iterator[Connection]:
    with ledger.transaction() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        yield connection
