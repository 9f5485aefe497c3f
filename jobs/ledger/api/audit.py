"""The audit: what was changed over HTTP, what was done to keys, and which requests were refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.schema import api_keys, audit, db_now

#: How long entries are kept: long enough to look into an incident.
AUDIT_DAYS: Final = 90

#: A function that is called in the transaction of a change, with what is done and the id of what is changed:
#: the HTTP API gives one that calls `record_action`.
OnChange = Callable[[Connection, str, str], object]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the audit."""

    id: str
    created_at: datetime
    action: str
    object: str
    key_id: str | None  # None: no valid key, or a command
    key_name: str | None
    address: str | None  # of the client; None: a command


def record_action(
    connection: Connection,
    action: str,
    changed: str,
    *,
    key_id: str | None = None,
    address: str | None = None,
) -> None:
    """Record that something was done, by a client with this key and address, or by a command.

    `changed` is the id of what was changed, or the request that was refused.
    """
    connection.execute(
        audit.insert().values(
            id=new_id(),
            key_id=key_id,
            address=address,
            action=action,
            object=changed,
            created_at=db_now(),
        )
    )


def list_entries(connection: Connection, *, limit: int) -> list[Entry]:
    """Return the latest entries, newest first."""
    query = (
        sa.select(
            *audit.c["id", "created_at", "action", "object", "key_id", "address"],
            api_keys.c.name.label("key_name"),
        )
        .outerjoin_from(audit, api_keys)
        .order_by(audit.c.id.desc())
    )
    return [Entry(**row._mapping) for row in connection.execute(query.limit(limit))]


def old_entries(connection: Connection, *, delete: bool) -> int:
    """Return how many entries are older than `AUDIT_DAYS`; with `delete`, delete them."""
    is_old = audit.c.created_at < db_now(-AUDIT_DAYS * 86_400.0)
    if delete:
        return connection.execute(audit.delete().where(is_old)).rowcount
    return connection.scalar(sa.select(sa.func.count()).select_from(audit).where(is_old)) or 0
