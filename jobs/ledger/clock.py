"""The database's clock, and how this machine's differs from it.

The ledger's own times all come from the database. But beat finds a schedule's slots by its machine's clock,
and TLS, object stores and receivers of webhooks compare times as well.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.schema import db_now

#: A clock that differs by more is wrong. Time servers keep clocks far closer, and receivers of webhooks
#: tolerate some minutes.
CLOCK_SECONDS: Final = 30.0


def database_now(connection: Connection) -> datetime:
    """Return the time of the database's clock."""
    return connection.execute(sa.select(db_now())).scalar_one()


def clock_error(connection: Connection) -> float:
    """Return the seconds by which this machine's clock is ahead of the database's, negative if it is behind.

    The time that the database took to answer does not count.
    """
    before = datetime.now(UTC)
    there = database_now(connection)
    after = datetime.now(UTC)
    if there > after:
        return (after - there).total_seconds()
    return max(0.0, (before - there).total_seconds())
