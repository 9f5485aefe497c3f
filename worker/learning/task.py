"""The training task's work: claim the run that a message names, and execute it.

`worker.learning.retrain` is imported only then, because it imports TensorFlow.
"""

from __future__ import annotations

import logging
import os
from contextlib import closing

from jobs.errors import NotFound
from jobs.ledger import Ledger
from jobs.ledger.learning.runs import RunClaim, claim_run, get_run
from jobs.ledger.workers import owner_name
from jobs.settings import Settings
from worker.message_filter import log_dropped

logger = logging.getLogger(__name__)


def execute_run(run_id: str, settings: Settings) -> None:
    """Execute a training run, unless it cannot be claimed. Raises what `worker.learning.retrain` raises."""
    claim = _claim_run(run_id, settings)
    if claim is not None:
        from worker.learning.retrain import retrain

        retrain(settings, claim)


def _claim_run(run_id: str, settings: Settings) -> RunClaim | None:
    """Claim a training run, or log why it cannot be claimed and return None. Raises Unavailable."""
    with closing(Ledger(settings.ledger)) as ledger, ledger.transaction() as connection:
        claim = claim_run(connection, run_id, owner=owner_name(os.getpid()))
        if claim is None:
            try:
                state = get_run(connection, run_id).state
                logger.info("training run %s cannot be claimed: it is %s", run_id, state)
            except NotFound:
                log_dropped("it names no training run of this ledger")
        return claim
