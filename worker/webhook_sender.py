"""Send webhooks, in many threads of a separate worker, because receivers may be slow or not answer at all.

Each task is a sender: it sends what is due, one delivery after the other. A project and each of its hosts
have a bounded share of a worker's senders, so the others have some, too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from jobs.errors import AddressForbidden, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.api.deliveries import (
    SENDERS_PER_HOST,
    SENDERS_PER_PROJECT,
    ClaimedDelivery,
    claim_delivery,
    record_answer,
)
from jobs.network.webhooks import sign
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: How long a receiver may take to answer.
TIMEOUT_SECONDS: Final = 15.0

#: After this time a task begins no further delivery, so that the worker can stop.
_TASK_SECONDS: Final = 5.0

#: Maximum bytes of an answer: only its status counts.
_MAX_ANSWER_BYTES: Final = 64 * 1024


#: What this process is sending, and the lock under which that changes.
_sending: Final[list[ClaimedDelivery]] = []
_claiming: Final = threading.Lock()


@cache
def process_ledger(settings: Settings) -> Ledger:
    """Return this process's ledger. Opening one for each message would take longer than sending it."""
    return Ledger(settings.ledger)


def deliver_due(ledger: Ledger, settings: Settings) -> None:
    """Send what is due, for some seconds. Raises Unavailable."""
    end = time.monotonic() + _TASK_SECONDS
    while deliver_next(ledger, settings) and time.monotonic() < end:
        pass


def deliver_next(ledger: Ledger, settings: Settings) -> bool:
    """Send the next delivery and record the answer. Return False if none is due. Raises Unavailable."""
    with _claimed(ledger) as delivery:
        if delivery is None:
            return False
        status, error = _send(delivery, settings)
    with ledger.transaction() as connection:
        record_answer(connection, delivery, status, error)
    logger.info("webhook %s, attempt %d: %s", delivery.id, delivery.attempts, error or status)
    return True


@contextmanager
def _claimed(ledger: Ledger) -> Iterator[ClaimedDelivery | None]:
    """Claim the next delivery whose project and host have not got their share of the senders."""
    with _claiming:
        projects = Counter(each.project for each in _sending)
        hosts = Counter((each.project, each.host) for each in _sending)
        full_projects = [each for each in projects if projects[each] >= SENDERS_PER_PROJECT]
        full_hosts = [each for each in hosts if hosts[each] >= SENDERS_PER_HOST]
        with ledger.transaction() as connection:
            delivery = claim_delivery(connection, full_projects=full_projects, full_hosts=full_hosts)
        if delivery is not None:
            _sending.append(delivery)
    try:
        yield delivery
    finally:
        if delivery is not None:
            with _claiming:
                _sending.remove(delivery)


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
    return answer.status, None
