"""Renew a training run's lease from a thread, because loading data and evaluating take longer than a lease.

The thread also notices that the run was lost. It cannot stop the training itself: the training calls `check`
between its steps.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import Final, Self

from structlog.contextvars import bind_contextvars

from jobs.errors import Unavailable
from jobs.ledger import Ledger
from jobs.ledger.learning.runs import RunClaim, RunLost, renew_run
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: The interval of renewals: a cancelled run ends within this time plus one step.
HEARTBEAT_SECONDS: Final = 2.0


class Heartbeat:
    """A context manager that keeps a run's lease while it is open."""

    def __init__(self, settings: Settings, claim: RunClaim) -> None:
        self._settings = settings
        self._claim = claim
        self._stopped = threading.Event()
        self._lost: RunLost | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def check(self) -> None:
        """Raise RunLost if the run was cancelled or taken for dead. This is cheap: it asks no database."""
        if self._lost is not None:
            raise self._lost

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        bind_contextvars(run=self._claim.run_id)  # a thread does not inherit the context
        with closing(Ledger(self._settings.ledger, pooled=False)) as ledger:
            while not self._stopped.wait(HEARTBEAT_SECONDS):
                try:
                    with ledger.transaction() as connection:
                        renew_run(connection, self._claim)
                except RunLost as error:
                    self._lost = error
                    return
                except Unavailable as error:
                    logger.warning("the heartbeat of training run %s failed: %s", self._claim.run_id, error)
