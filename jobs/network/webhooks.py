"""Webhooks as Standard Webhooks 1.0 defines them: the events, the secrets, and the signature of a message.

`jobs.ledger.webhook_outbox` writes the messages, and `worker.webhook_sender` sends them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from enum import StrEnum
from typing import Final

from jobs.errors import Unavailable, UserError

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 -- what every secret begins with

#: The standard allows 24 to 64 bytes.
_SECRET_BYTES: Final = 32
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64


class Event(StrEnum):
    """What is reported. A batch is a job."""

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_CANCELLED = "batch.cancelled"
    MODEL_PROMOTED = "model.promoted"
    RUN_FINISHED = "run.finished"
    DRIFT_DETECTED = "drift.detected"


def check_receiver(url: str, private: Collection[str]) -> None:
    """Raise AddressForbidden if webhooks cannot go to this URL. `private` is as in `jobs.network.outbound`.

    A host that has no address now is not refused: it may be down.
    """
    from jobs.network.outbound import check_url

    with suppress(Unavailable):
        check_url(url, private=private, need_tls=True)


def new_secret() -> str:
    """Return a new secret."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def check_secret(secret: str) -> str:
    """Return the secret. Raises UserError, without repeating it, if it is malformed."""
    try:
        key = _key_of(secret)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not _MIN_SECRET_BYTES <= len(key) <= _MAX_SECRET_BYTES:
        raise UserError(
            f"A webhook's secret is {SECRET_PREFIX} and then {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} "
            "bytes in base64. Leave it out, and one is made."
        )
    return secret


def sign(signing: Iterable[str], message_id: str, timestamp: int, body: str) -> str:
    """Return the header `webhook-signature`: one signature for each of these secrets."""
    signed = f"{message_id}.{timestamp}.{body}".encode()
    digests = (hmac.digest(_key_of(secret), signed, "sha256") for secret in signing)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def _key_of(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
