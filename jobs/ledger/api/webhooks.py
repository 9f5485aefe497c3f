"""Webhook endpoints: each project's receivers, what they want, and the secrets that sign what they get.

A secret is stored as it is, because signing needs it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger.api.projects import check_project
from jobs.ledger.database import insert_into
from jobs.network.webhooks import Event, new_secret
from jobs.options import DEFAULT_PROJECT
from jobs.schema import db_now, webhook_endpoints

#: How long messages are also signed with the old secret after a change.
ROTATION_SECONDS: Final = 86_400.0

#: Maximum receivers of a project: the end of each batch writes a row for each.
MAX_ENDPOINTS: Final = 20

_COLUMNS: Final = webhook_endpoints.c[
    "id", "project", "url", "events", "created_at", "disabled_at", "old_until"
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of webhooks, without its secret."""

    id: str
    project: str
    url: str | None  # None: the addresses that the project's batches name
    events: list[str]  # none: all
    created_at: datetime
    disabled_at: datetime | None
    old_until: datetime | None  # until when messages are also signed with the old secret


def add_endpoint(
    connection: Connection,
    url: str,
    events: Collection[Event] = (),
    *,
    project: str = DEFAULT_PROJECT,
    secret: str | None = None,
) -> tuple[Endpoint, str]:
    """Add an endpoint for these events, or for all. Return it and its secret. The caller checks the URL.

    Raises NotFound if there is no such project, Conflict if it has too many endpoints.
    """
    check_project(connection, project)
    if len(list_endpoints(connection, project=project)) >= MAX_ENDPOINTS:
        raise Conflict(f"Project {project} has {MAX_ENDPOINTS} webhooks already: remove one first.")
    endpoint_id, secret = new_id(), secret or new_secret()
    connection.execute(
        webhook_endpoints.insert().values(
            id=endpoint_id, project=project, url=url, events=list(events), secret=secret, created_at=db_now()
        )
    )
    return get_endpoint(connection, endpoint_id), secret


def secret_of_batches(connection: Connection, project: str) -> str:
    """Return the secret that signs messages to the `webhook_url` of a project's batches.

    The first call makes it. Raises NotFound if there is no such project.
    """
    check_project(connection, project)
    connection.execute(
        insert_into(connection, webhook_endpoints)
        .values(id=new_id(), project=project, url=None, events=[], secret=new_secret(), created_at=db_now())
        .on_conflict_do_nothing()
    )
    secret = sa.select(webhook_endpoints.c.secret).where(
        webhook_endpoints.c.project == project, webhook_endpoints.c.url.is_(None)
    )
    found: str = connection.execute(secret).scalar_one()
    return found


def get_endpoint(connection: Connection, endpoint_id: str, *, project: str | None = None) -> Endpoint:
    """Return the endpoint with this id, which must be the project's, if given. Raises NotFound."""
    query = sa.select(*_COLUMNS).where(webhook_endpoints.c.id == endpoint_id)
    if project is not None:
        query = query.where(webhook_endpoints.c.project == project)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"There is no webhook {endpoint_id!r}: `labelmill webhooks` lists all.")
    return Endpoint(**row._mapping)


def list_endpoints(connection: Connection, *, project: str | None = None) -> list[Endpoint]:
    """Return all endpoints, or those of a project, oldest first.

    Raises NotFound if there is no such project.
    """
    query = sa.select(*_COLUMNS).order_by(webhook_endpoints.c.created_at, webhook_endpoints.c.id)
    if project is not None:
        check_project(connection, project)
        query = query.where(webhook_endpoints.c.project == project)
    return [Endpoint(**row._mapping) for row in connection.execute(query)]


def rotate_secret(connection: Connection, endpoint_id: str, secret: str | None = None) -> str:
    """Give the endpoint a new secret and return it. The old one signs, too, for a day. Raises NotFound."""
    secret = secret or new_secret()
    changed = connection.execute(
        webhook_endpoints.update()
        .where(webhook_endpoints.c.id == endpoint_id)
        .values(old_secret=webhook_endpoints.c.secret, old_until=db_now(ROTATION_SECONDS), secret=secret)
    )
    if not changed.rowcount:
        get_endpoint(connection, endpoint_id)  # raises NotFound
    return secret


def disable_endpoint(connection: Connection, endpoint_id: str) -> bool:
    """Disable the endpoint, so that nothing more is sent to it. Return False if it has no URL of its own."""
    disabled = connection.execute(
        webhook_endpoints.update()
        .where(webhook_endpoints.c.id == endpoint_id, webhook_endpoints.c.url.is_not(None))
        .values(disabled_at=db_now())
    )
    return bool(disabled.rowcount)


def remove_endpoint(connection: Connection, endpoint_id: str) -> None:
    """Remove the endpoint and its deliveries. Raises NotFound."""
    gone = connection.execute(webhook_endpoints.delete().where(webhook_endpoints.c.id == endpoint_id))
    if not gone.rowcount:
        get_endpoint(connection, endpoint_id)  # raises NotFound
