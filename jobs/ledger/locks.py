"""Named locks in the ledger, for work that one process does at a time."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import insert_into
from jobs.schema import db_now, locks

#: The lock of the process that reconciles.
RECONCILE_LOCK: Final = "reconcile"


def take_lock(connection: Connection, name: str, holder: str, *, seconds: float) -> bool:
    """Take or keep a named lock that one process holds at a time. Return False if another process holds it.

    The lock expires after `seconds` unless it is taken again.
    """
    taken = connection.scalar(
        insert_into(connection, locks)
        .values(name=name, holder=holder, until=db_now(seconds))
        .on_conflict_do_update(
            index_elements=[locks.c.name],
            set_={"holder": holder, "until": db_now(seconds)},
            where=sa.or_(locks.c.holder == holder, locks.c.until < db_now()),
        )
        .returning(locks.c.holder)
    )
    return taken is not None
