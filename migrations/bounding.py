"""Check before an upgrade what PostgreSQL would otherwise check during it, while readers and writers wait.

Partitions are added immediately if a validated constraint says that the default partition has no rows of
theirs. Validating it reads all its rows, but readers and writers continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ids import first_id
from jobs.ledger import Ledger
from jobs.ledger.partitions import WEEK_SECONDS, weeks_due
from migrations import LOCK_TIMEOUT

#: The constraint's name. It refuses predictions of jobs that come weeks later, which matters only if an
#: upgrade was killed and nobody repeats it.
BOUND = "bound_until_upgraded"

_IS_CONSTRAINED = sa.text("""
    SELECT true FROM pg_constraint WHERE conname = :name AND conrelid = to_regclass('predictions_default')
""")


@contextmanager
def bounded(ledger: Ledger) -> Iterator[None]:
    """Run the body, which upgrades, with the constraint in place if it is needed. Raises Unavailable."""
    if ledger.is_sqlite:
        yield
        return
    _drop(ledger)  # an interrupted upgrade left it
    with ledger.reading() as connection:
        condition = _needed(connection)
    if condition is None:
        yield
        return
    try:
        with _altering(ledger) as connection:
            add = f"ALTER TABLE predictions_default ADD CONSTRAINT {BOUND} CHECK ({condition}) NOT VALID"
            connection.execute(sa.text(add))
        with _altering(ledger) as connection:
            connection.execute(sa.text(f"ALTER TABLE predictions_default VALIDATE CONSTRAINT {BOUND}"))
        yield
    finally:
        # If it fails, the next upgrade drops it. After a success, it excludes only rows that have partitions.
        with suppress(Unavailable):
            _drop(ledger)


def _needed(connection: Connection) -> str | None:
    """Return the constraint's condition, or None if there are no rows to check."""
    weeks = weeks_due(connection)
    if not weeks or not connection.scalar(sa.text("SELECT EXISTS (SELECT FROM predictions_default)")):
        return None
    first, beyond = (first_id(week * WEEK_SECONDS) for week in (weeks.start, weeks.stop))
    return f"job_id < '{first}' OR job_id >= '{beyond}'"


def _drop(ledger: Ledger) -> None:
    """Drop the constraint if it is there. Only then wait for those who read the table."""
    with _altering(ledger) as connection:
        if connection.scalar(_IS_CONSTRAINED, {"name": BOUND}):
            connection.execute(sa.text(f"ALTER TABLE predictions_default DROP CONSTRAINT {BOUND}"))


@contextmanager
def _altering(ledger: Ledger) -> Iterator[Connection]:
    with ledger.transaction() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        yield connection
