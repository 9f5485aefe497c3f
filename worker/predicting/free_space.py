"""Wait for room on the ledger's disk: until then, what a process computes cannot be recorded."""

from __future__ import annotations

import logging
import time
from typing import Final

from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import LedgerFull, Unavailable
from jobs.ledger.free_space import prove_room
from jobs.ledger.jobs.claims import Reason, claimed_by, release_claims
from worker.predicting.context import WorkerContext

logger = logging.getLogger(__name__)

#: The pause before each check for room, in seconds, and at most this share of the soft time limit.
PAUSE_SECONDS: Final = 10.0
PAUSE_SHARE: Final = 0.25

#: How often one task checks. Then the next task continues, so that a worker can be stopped soon.
LOOKS: Final = 2


def wait_for_room(context: WorkerContext) -> bool:
    """Wait a while for room on the ledger's disk, which was full. Return whether there is room again.

    If there is, release the claims that this process could not release.
    """
    pause = min(PAUSE_SECONDS, PAUSE_SHARE * context.settings.soft_time_limit)
    try:
        for _ in range(LOOKS):
            time.sleep(pause)  # also at first: there may be some room, but not enough to record
            if _find_room(context):
                return True
    except SoftTimeLimitExceeded:
        logger.debug("the time limit struck while this process waited for room")
    return False


def _find_room(context: WorkerContext) -> bool:
    try:
        with context.ledger.transaction() as connection:
            prove_room(connection)
            release_claims(connection, claimed_by(context.owner), Reason.UNAVAILABLE, str(LedgerFull()))
    except Unavailable:
        return False
    context.ledger_is_full = False
    logger.info("the ledger's disk has room again: this process claims chunks")
    return True
