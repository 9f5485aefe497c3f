"""Webhook endpoints: the receivers, what they want, and the secrets that sign what they get.

A secret is stored as it is, because signing needs it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.ledger.database import insert_into
from jobs.ledger.webhook_outbox import BATCHES
from jobs.network.webhooks import Event, new_secret
from jobs.schema import db_now, webhook_endpoints

#: How long messages are also signed with the old secret after a change.
ROTATION_SECONDS: Final = 86_400.0

_COLUMNS: Final = webhook_endpoints.c["id", "url", "events", "created_at", "disabled_at", "old_until"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of webhooks, without its secret."""

    id: str
    url: str | None  # None: the addresses that batches name
    events: list[str]  # none: all
    created_at: datetime
    disabled_at: datetime | None
    old_until: datetime | None  # until when messages are also signed with the old secret


def add_endpoint(
    connection: Connection, url: str, events: Collection[Event] = (), *, secret: str | None = None
) -> tuple[Endpoint, str]:
    """Add an endpoint for these events, or for all. Return it and its secret. The caller checks the URL."""
    endpoint_id, secret = new_id(), secret or new_secret()
    connection.execute(
        webhook_endpoints.insert().values(
            id=endpoint_id, url=url, events=list(events), secret=secret, created_at=db_now()
        )
    )
    return get_endpoint(connection, endpoint_id), secret


def secret_of_batches(connection: Connection) -> str:
    """Return the secret that signs messages to the `webhook_url` of batches. The first call makes it."""
    connection.execute(
        insert_into(connection, webhook_endpoints)
        .values(id=BATCHES, url=None, events=[], secret=new_secret(), created_at=db_now())
        .on_conflict_do_nothing()
    )
    secret = sa.select(webhook_endpoints.c.secret).where(webhook_endpoints.c.id == BATCHES)
    found: str = connection.execute(secret).scalar_one()
    return found


def get_endpoint(connection: Connection, endpoint_id: str) -> Endpoint:
    """Return the endpoint with this id. Raises NotFound."""
    row = connection.execute(sa.select(*_COLUMNS).where(webhook_endpoints.c.id == endpoint_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no webhook {endpoint_id!r}: `labelmill webhooks` lists all.")
    return Endpoint(**row._mapping)


def list_endpoints(connection: Connection) -> list[Endpoint]:
    """Return all endpoints, oldest first."""
    rows = connection.execute(sa.select(*_COLUMNS).order_by(webhook_endpoints.c.created_at))
    return [Endpoint(**row._mapping) for row in rows]


def rotate_secret(connection: Connection, endpoint_id: str, secret: str | None = None) -> str:
    """Give the endpoint a new secret and return it. The old one signs, too, for a day. Raises NotFound."""
    secret = secret or new_secret()
    if endpoint_id == BATCHES:
        secret_of_batches(connection)  # the first call makes the endpoint
    _change(
        connection,
        endpoint_id,
        {
            "old_secret": webhook_endpoints.c.secret,
            "old_until": db_now(ROTATION_SECONDS),
            "secret": secret,
        },
    )
    return secret


def disable_endpoint(connection: Connection, endpoint_id: str) -> None:
    """Disable the endpoint, so that nothing more is sent to it. Raises NotFound."""
    _change(connection, endpoint_id, {"disabled_at": db_now()})


def remove_endpoint(connection: Connection, endpoint_id: str) -> None:
    """Remove the endpoint and its deliveries. Raises NotFound."""
    gone = connection.execute(webhook_endpoints.delete().where(webhook_endpoints.c.id == endpoint_id))
    if not gone.rowcount:
        get_endpoint(connection, endpoint_id)


def _change(connection: Connection, endpoint_id: str, values: dict[str, Any]) -> None:
    changed = connection.execute(
        webhook_endpoints.update().where(webhook_endpoints.c.id == endpoint_id).values(values)
    )
    if not changed.rowcount:
        get_endpoint(connection, endpoint_id)
