"""Send webhooks: each task sends the delivery that has been due for longest.

Its receiver may be slow, or not answer at all, so separate workers do this.
"""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Final

from celery.exceptions import SoftTimeLimitExceeded

from jobs.errors import AddressForbidden, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.api.deliveries import ClaimedDelivery, claim_delivery, record_answer
from jobs.network.webhooks import sign
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: How long a receiver may take to answer.
TIMEOUT_SECONDS: Final = 15.0

#: Maximum bytes of an answer: only its status counts.
_MAX_ANSWER_BYTES: Final = 64 * 1024


@cache
def process_ledger(settings: Settings) -> Ledger:
    """Return this process's ledger. Opening one for each message would take longer than sending it."""
    return Ledger(settings.ledger)


def deliver_next(ledger: Ledger, settings: Settings) -> bool:
    """Send the next delivery and record the answer. Return False if none is due. Raises Unavailable."""
    with ledger.transaction() as connection:
        delivery = claim_delivery(connection)
    if delivery is None:
        return False
    status, error = _send(delivery, settings)
    with ledger.transaction() as connection:
        record_answer(connection, delivery, status, error)
    logger.info("webhook %s, attempt %d: %s", delivery.id, delivery.attempts, error or status)
    return True


def _send(delivery: ClaimedDelivery, settings: Settings) -> tuple[int | None, str | None]:
    """Send the delivery. Return the answer's status, or why there is none."""
    from jobs.network.outbound import request

    now = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(delivery.secrets, delivery.id, now, delivery.body),
    }
    try:
        answer = request(
            "POST",
            delivery.url,
            headers=headers,
            body=delivery.body.encode(),
            timeout=TIMEOUT_SECONDS,
            max_bytes=_MAX_ANSWER_BYTES,
            private=settings.private_hosts,
        )
    except (AddressForbidden, Unavailable) as error:
        return None, str(error)
    except SoftTimeLimitExceeded:  # resolving a name has no time limit that we set
        return None, "the name server did not answer in time"
    return answer.status, None
