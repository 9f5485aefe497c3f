"""The outbox: webhooks are written in the transaction of the change that they report.

So a change that is committed is reported, and one that is rolled back is not. There is one row per event and
receiver. If nobody wants an event, that costs one short query. The end of a batch is told to its own project,
everything else to all, since models and training are shared. `jobs.ledger.api.deliveries` takes the rows out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger.api_objects import BATCH_STATUS, describe_batch
from jobs.network.webhooks import Event
from jobs.schema import DeliveryState, batches, db_now, jobs, webhook_deliveries, webhook_endpoints

#: The type of a message that `labelmill webhooks test` sends.
TEST: Final = "test"

#: A URL, for its host. Unlike `urlsplit`, this fails for none, so that every job can end.
_HOST: Final = re.compile(r"^\w+://([^/?#]*).*", re.DOTALL)

_ENDPOINTS: Final[sa.Select[Any]] = sa.select(*webhook_endpoints.c["id", "project", "url", "events"]).where(
    webhook_endpoints.c.disabled_at.is_(None)
)

#: The same, protected from removal until the transaction ends: a delivery needs its endpoint.
_KEPT_ENDPOINTS: Final = _ENDPOINTS.with_for_update(read=True, key_share=True)

_ENDPOINTS_OF_JOBS: Final = _KEPT_ENDPOINTS.where(
    webhook_endpoints.c.project.in_(
        sa.select(jobs.c.project).where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)))
    )
)

#: The jobs that have ended, with the requests of batches. Nobody submitted a shadow, or waits for a webhook
#: about a job that is not listed.
_ENDED: Final[sa.Select[Any]] = (
    sa.select(
        *jobs.c["id", "project", "state", "total", "succeeded", "failed", "error"],
        *jobs.c["created_at", "submitted_at", "finished_at"],
        jobs.c.model_id.label("model"),
        *batches.c["request", "file_id"],
    )
    .outerjoin_from(jobs, batches, batches.c.job_id == jobs.c.id)
    .where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)), jobs.c.shadow_of.is_(None), ~jobs.c.unlisted)
    .order_by(jobs.c.id)
)


def is_wanted(connection: Connection, event: Event) -> bool:
    """Return whether an endpoint wants this event."""
    return any(_wants(endpoint, event) for endpoint in connection.execute(_ENDPOINTS))


def report(connection: Connection, event: Event, describe: Callable[[], Mapping[str, Any]]) -> None:
    """Write the deliveries of an event. `describe` is called only if there are any; it returns the data."""
    endpoints = [each for each in connection.execute(_KEPT_ENDPOINTS) if _wants(each, event)]
    if endpoints:
        body = _to_body(event, describe())
        _write(connection, [(each, each.url, event, body) for each in endpoints])


def report_ended_jobs(connection: Connection, job_ids: Collection[str]) -> None:
    """Write the deliveries about jobs that this transaction has ended."""
    ids = {"ids": list(job_ids)}
    endpoints = connection.execute(_ENDPOINTS_OF_JOBS, ids).all() if job_ids else []
    if not endpoints:
        return
    written = []
    for job in connection.execute(_ENDED, ids):
        event = Event(f"batch.{BATCH_STATUS[job.state]}")
        of_project = [each for each in endpoints if each.project == job.project]
        receivers = [(each, each.url) for each in of_project if _wants(each, event)]
        if own := (job.request or {}).get("webhook_url"):
            receivers += [(each, own) for each in of_project if each.url is None]
        if receivers:
            body = _to_body(event, describe_batch(job, job.request or {}, job.file_id))
            written += [(endpoint, url, event, body) for endpoint, url in receivers]
    _write(connection, written)


def report_test(connection: Connection, endpoint_id: str) -> str:
    """Write a delivery that reports nothing, to one endpoint. Return its id.

    Raises Conflict if the endpoint is disabled or has no URL.
    """
    is_it = sa.and_(webhook_endpoints.c.id == endpoint_id, webhook_endpoints.c.url.is_not(None))
    endpoint = connection.execute(_KEPT_ENDPOINTS.where(is_it)).one_or_none()
    if endpoint is None:
        raise Conflict(
            f"Webhook {endpoint_id} cannot be tested, because it is disabled or has no URL of its own: "
            "add another one."
        )
    return _write(connection, [(endpoint, endpoint.url, TEST, _to_body(TEST, {}))])[0]


def _to_body(event: str, data: Mapping[str, Any]) -> str:
    """Return the body of a message."""
    message = {"type": event, "timestamp": datetime.now(UTC).isoformat(), "data": data}
    return json.dumps(message, separators=(",", ":"))


def _wants(endpoint: Row[Any], event: Event) -> bool:
    return endpoint.url is not None and (not endpoint.events or event in endpoint.events)


def _write(connection: Connection, written: Collection[tuple[Row[Any], str, str, str]]) -> list[str]:
    """Add deliveries, each given as its endpoint, URL, event and body. Return their ids."""
    rows = [
        {
            "id": new_id(),
            "endpoint_id": endpoint.id,
            "project": endpoint.project,
            "url": url,
            "host": _HOST.sub(r"\1", url).lower(),
            "event": event,
            "body": body,
        }
        for endpoint, url, event, body in written
    ]
    if rows:
        times = {"state": DeliveryState.PENDING, "created_at": db_now(), "due_at": db_now()}
        connection.execute(webhook_deliveries.insert().values(times), rows)
    return [row["id"] for row in rows]
