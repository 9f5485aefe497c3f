"""`/v1/webhooks`: the receivers of the key's project, their secrets, and what was sent to them."""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.engine import Connection

from jobs.errors import AddressForbidden, NotFound
from jobs.ids import is_id
from jobs.ledger.api.deliveries import list_deliveries
from jobs.ledger.api.webhooks import (
    Endpoint,
    add_endpoint,
    get_endpoint,
    list_endpoints,
    remove_endpoint,
    rotate_secret,
    secret_of_batches,
)
from jobs.ledger.webhook_outbox import report_test
from jobs.network.webhooks import check_receiver
from labelmill.server.access import AdminSession, Session
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.schemas import (
    DeliveryObject,
    DeliveryStarted,
    Listing,
    NewWebhook,
    WebhookDeleted,
    WebhookObject,
    WebhookSecret,
    WebhookWithSecret,
)

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.get("")
def list_webhooks(session: AdminSession) -> Listing[WebhookObject]:
    """List the project's webhooks, oldest first, without their secrets."""
    with session.client.ledger.reading() as connection:
        found = list_endpoints(connection, project=session.project)
    return Listing(data=list(map(WebhookObject.of, found)))


@router.post("", responses={HTTPStatus.CONFLICT: {}})
def create_webhook(wanted: NewWebhook, session: AdminSession) -> WebhookWithSecret:
    """Add a webhook. The answer has its secret, with which the receiver verifies messages."""
    check_address(session, "url", wanted.url)
    with session.client.ledger.transaction() as connection:
        endpoint, secret = add_endpoint(connection, wanted.url, wanted.events, project=session.project)
        session.record(connection, "create webhook", endpoint.id)
    return _with_secret(endpoint, secret)


@router.get("/secret")
def show_secret(session: AdminSession) -> WebhookSecret:
    """Show the secret that signs messages to the `webhook_url` of the project's batches."""
    with session.client.ledger.transaction() as connection:
        return WebhookSecret(secret=secret_of_batches(connection, session.project))


@router.delete("/{webhook_id}")
def delete_webhook(webhook_id: str, session: AdminSession) -> WebhookDeleted:
    """Remove a webhook and all its messages, sent or not."""
    with session.client.ledger.transaction() as connection:
        endpoint = _found(connection, session, webhook_id)
        remove_endpoint(connection, endpoint.id)
        session.record(connection, "delete webhook", endpoint.id)
    return WebhookDeleted(id=endpoint.id)


@router.post("/{webhook_id}/rotate")
def rotate_webhook(webhook_id: str, session: AdminSession) -> WebhookWithSecret:
    """Give a webhook a new secret. For 24 hours, messages are signed with both."""
    with session.client.ledger.transaction() as connection:
        endpoint = _found(connection, session, webhook_id)
        secret = rotate_secret(connection, endpoint.id)
        session.record(connection, "rotate webhook", endpoint.id)
    return _with_secret(endpoint, secret)


@router.post("/{webhook_id}/test", status_code=HTTPStatus.ACCEPTED)
def test_webhook(webhook_id: str, session: AdminSession) -> DeliveryStarted:
    """Send a message of the type `test`. The webhook's deliveries say what it answers."""
    with session.client.ledger.transaction() as connection:
        endpoint = _found(connection, session, webhook_id)
        delivery_id = report_test(connection, endpoint.id)
        session.record(connection, "test webhook", endpoint.id)
    return DeliveryStarted(id=delivery_id)


@router.get("/{webhook_id}/deliveries")
def show_deliveries(
    webhook_id: str,
    session: AdminSession,
    limit: Annotated[int, Query(ge=1, le=1_000, description="at most this many")] = 50,
) -> Listing[DeliveryObject]:
    """List the messages to a webhook, sent or not, newest first."""
    with session.client.ledger.reading() as connection:
        endpoint = _found(connection, session, webhook_id)
        found = list_deliveries(connection, limit=limit, endpoint_id=endpoint.id)
    return Listing(data=list(map(DeliveryObject.of, found)))


def check_address(session: Session, field: str, url: str) -> None:
    """Raise ApiError if webhooks cannot go to the address in this field of a request."""
    try:
        check_receiver(url, session.client.settings.private_hosts)
    except AddressForbidden as error:
        raise ApiError(HTTPStatus.FORBIDDEN, ProblemCode.FORBIDDEN, f"{field}: {error}") from None


def _found(connection: Connection, session: Session, webhook_id: str) -> Endpoint:
    """Return the project's webhook with this id. Raises NotFound."""
    if is_id(webhook_id):
        with suppress(NotFound):
            return get_endpoint(connection, webhook_id, project=session.project)
    raise NotFound(f"There is no webhook {webhook_id!r}: `GET /v1/webhooks` lists them.")


def _with_secret(endpoint: Endpoint, secret: str) -> WebhookWithSecret:
    return WebhookWithSecret(**WebhookObject.of(endpoint).model_dump(), secret=secret)
