"""Deliveries: a sender claims one that is due, sends it, and records the answer.

Projects with due deliveries take turns: next is the one whose latest claim is the oldest.

A claim moves the time at which the delivery is due behind its lease. So if the sender is killed, the delivery
is due again by itself, and is sent once more under the same id.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger.api.webhooks import disable_endpoint
from jobs.ledger.counters import CounterName, WebhookResult, count
from jobs.schema import DeliveryState, db_now, projects, webhook_deliveries, webhook_endpoints

#: How many senders of one process may be at work for a project, and how many of them for one host. Receivers
#: that do not answer then keep only these, and delay nobody else.
SENDERS_PER_PROJECT: Final = 4
SENDERS_PER_HOST: Final = 2

#: How long a sender's claim lasts: far longer than a request takes (`worker.webhook_sender`).
LEASE_SECONDS: Final = 60.0

#: The pauses after failed attempts: a day in all, after which a delivery has failed.
PAUSES_SECONDS: Final = (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, *[7_200.0] * 11)

#: Each pause is longer or shorter by up to this share, so that deliveries do not come in waves.
_JITTER: Final = 0.2

#: How long a project's other deliveries to a host wait after it did not answer.
_SILENCE_SECONDS: Final = 5.0

_GONE: Final = 410

#: The condition of the index, literally: with a parameter, neither database sees that it applies.
_IS_PENDING: Final = sa.text("webhook_deliveries.state = 'pending'")

_IS_DUE: Final = sa.and_(_IS_PENDING, webhook_deliveries.c.due_at <= db_now())


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """The right to send a delivery until its lease runs out."""

    id: str
    token: str
    endpoint_id: str
    project: str
    url: str
    host: str
    body: str
    attempts: int
    secrets: tuple[str, ...]  # all that sign, the newest first


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery, for people to read."""

    id: str
    event: str
    endpoint: str  # its id
    url: str
    state: DeliveryState
    attempts: int
    status: int | None  # of the latest answer
    error: str | None  # why the latest attempt failed
    created_at: datetime
    due_at: datetime | None  # the next attempt; None if there is none
    finished_at: datetime | None


_PROJECT: Final = sa.bindparam("of_project", type_=projects.c.name.type)

#: Due, and its host has not got its share of the senders.
_IS_OPEN: Final = sa.and_(
    _IS_DUE,
    sa.tuple_(webhook_deliveries.c.project, webhook_deliveries.c.host).not_in(
        sa.bindparam("full_hosts", expanding=True)
    ),
)


def _next_of(project: sa.ColumnElement[str]) -> sa.Select[tuple[str]]:
    query = sa.select(webhook_deliveries.c.id).where(webhook_deliveries.c.project == project, _IS_OPEN)
    return query.order_by(webhook_deliveries.c.due_at).limit(1)


_TURN: Final = (
    sa.select(projects.c.name)
    .where(
        projects.c.name.not_in(sa.bindparam("passed", expanding=True)),
        _next_of(projects.c.name).correlate(projects).scalar_subquery().is_not(None),
    )
    .order_by(projects.c.webhook_at.nulls_first())
    .limit(1)
)

_TAKE: Final = (
    webhook_deliveries.update()
    .where(webhook_deliveries.c.id == _next_of(_PROJECT).with_for_update(skip_locked=True).scalar_subquery())
    .values(
        attempts=webhook_deliveries.c.attempts + 1,
        token=sa.bindparam("by_token"),
        due_at=db_now(LEASE_SECONDS),
    )
    .returning(
        *webhook_deliveries.c["id", "token", "endpoint_id", "project", "url", "host", "body", "attempts"]
    )
)


def count_useful_senders(connection: Connection) -> int:
    """Return how many senders could be at work on what is due, if each project uses its share."""
    due = sa.select(webhook_deliveries.c.id).where(webhook_deliveries.c.project == projects.c.name, _IS_DUE)
    # In the order of the index: otherwise PostgreSQL may read all deliveries for each project.
    first = due.order_by(webhook_deliveries.c.due_at).limit(SENDERS_PER_PROJECT)
    share = first.correlate(projects).subquery()
    of_project = sa.select(sa.func.count()).select_from(share).scalar_subquery()
    return connection.scalar(sa.select(sa.func.sum(of_project)).select_from(projects)) or 0


def claim_delivery(
    connection: Connection,
    *,
    full_projects: Collection[str] = (),
    full_hosts: Collection[tuple[str, str]] = (),
) -> ClaimedDelivery | None:
    """Claim the delivery of the project whose turn it is that has been due for longest, or return None.

    Projects that have their share of the senders are passed over, and so are hosts, each given with its
    project.
    """
    passed, hosts, token = list(full_projects), list(full_hosts), new_id()
    claimed = None
    while claimed is None:
        project = connection.scalar(_TURN, {"passed": passed, "full_hosts": hosts})
        if project is None:
            return None
        taking = {"of_project": project, "full_hosts": hosts, "by_token": token}
        claimed = connection.execute(_TAKE, taking).one_or_none()
        passed.append(project)  # if there is none, other senders are claiming all that it has
    connection.execute(projects.update().where(projects.c.name == project).values(webhook_at=db_now()))
    old_signs = webhook_endpoints.c.old_until > db_now()
    secrets = connection.execute(
        sa.select(webhook_endpoints.c.secret, sa.case((old_signs, webhook_endpoints.c.old_secret))).where(
            webhook_endpoints.c.id == claimed.endpoint_id
        )
    ).one()
    return ClaimedDelivery(**claimed._mapping, secrets=tuple(filter(None, secrets)))


def record_answer(
    connection: Connection, delivery: ClaimedDelivery, status: int | None, error: str | None = None
) -> None:
    """Record the answer's status, or None if there was none. Do nothing if the claim was lost.

    2xx is success. 410 disables the endpoint, and its other deliveries fail. Anything else is retried until
    the last pause is over.
    """
    # The endpoint is locked first, as when a command removes it.
    is_endpoint_gone = status == _GONE and disable_endpoint(connection, delivery.endpoint_id)
    values: dict[str, Any] = {"status": status, "error": error or f"it answered {status}"}
    if status is not None and 200 <= status < 300:
        result = WebhookResult.DELIVERED
        values |= {"state": DeliveryState.DELIVERED, "finished_at": db_now(), "error": None}
    elif status == _GONE or delivery.attempts > len(PAUSES_SECONDS):
        result = WebhookResult.FAILED
        values |= {"state": DeliveryState.FAILED, "finished_at": db_now()}
    else:
        result = WebhookResult.RETRIED
        pause = PAUSES_SECONDS[delivery.attempts - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        values["due_at"] = db_now(pause)
    is_ours = sa.and_(webhook_deliveries.c.id == delivery.id, webhook_deliveries.c.token == delivery.token)
    recorded = connection.execute(webhook_deliveries.update().where(is_ours, _IS_PENDING).values(values))
    if not recorded.rowcount:
        return
    count(connection, {(CounterName.WEBHOOKS, result): 1})
    if status is None:
        silent = sa.and_(
            webhook_deliveries.c.project == delivery.project,
            webhook_deliveries.c.host == delivery.host,
            webhook_deliveries.c.due_at < db_now(_SILENCE_SECONDS),
        )
        _change_pending(connection, silent, due_at=db_now(_SILENCE_SECONDS))
    if is_endpoint_gone:
        same = webhook_deliveries.c.endpoint_id == delivery.endpoint_id
        failed = {"state": DeliveryState.FAILED, "finished_at": db_now(), "error": "its endpoint is disabled"}
        _change_pending(connection, same, **failed)


def list_deliveries(
    connection: Connection, *, limit: int, project: str | None = None, endpoint_id: str | None = None
) -> list[Delivery]:
    """Return the latest deliveries, newest first: all, or only those of a project or an endpoint."""
    table = webhook_deliveries.c
    query = sa.select(
        *(table.id, table.event, table.endpoint_id.label("endpoint"), table.url, table.state, table.attempts),
        *(table.status, table.error, table.created_at, table.finished_at),
        sa.case((_IS_PENDING, table.due_at)).label("due_at"),
    ).order_by(table.id.desc())
    if project is not None:
        query = query.where(table.project == project)
    if endpoint_id is not None:
        query = query.where(table.endpoint_id == endpoint_id)
    rows = connection.execute(query.limit(limit))
    return [Delivery(**{**row._mapping, "state": DeliveryState(row.state)}) for row in rows]


def old_deliveries(connection: Connection, *, days: float, delete: bool) -> int:
    """Return how many deliveries ended more than `days` days ago; with `delete`, delete them."""
    is_old = webhook_deliveries.c.finished_at < db_now(-days * 86_400.0)
    if delete:
        return connection.execute(webhook_deliveries.delete().where(is_old)).rowcount
    query = sa.select(sa.func.count()).select_from(webhook_deliveries).where(is_old)
    return connection.scalar(query) or 0


def _change_pending(connection: Connection, which: sa.ColumnElement[bool], **values: Any) -> None:
    # Skip rows that another sender has locked: two senders that wait for each other would deadlock.
    unlocked = sa.select(webhook_deliveries.c.id).where(_IS_PENDING, which).with_for_update(skip_locked=True)
    connection.execute(
        webhook_deliveries.update().where(webhook_deliveries.c.id.in_(unlocked)).values(values)
    )
