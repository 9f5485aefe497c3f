"""The reconciler: rings again for every chunk that waits without a message or whose worker died.

Every worker runs one, on the timer of its main process; a lock in the ledger lets one at a time do the work.
It runs between the main loop's other doings, never in a thread of its own: a thread that holds a lock of
SQLite's at the moment of a fork would leave the child with a lock nobody opens.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any, Final

from celery import bootsteps
from kombu.exceptions import OperationalError

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.pausing import hold_leftover_chunks
from jobs.ledger.upkeep import (
    RECONCILE_LOCK,
    chunks_to_ring,
    count_due,
    drop_leftover_chunks,
    fail_abandoned_jobs,
    take_lock,
)
from jobs.queue import MAX_OUTSTANDING, Bell
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: How often each worker looks.
RECONCILE_SECONDS: Final = 2.0


class Reconciler:
    """Compares what the ledger says is due with what waits on the queue, and sends what is missing."""

    def __init__(self, ledger: Ledger, bell: Bell, *, holder: str) -> None:
        self._ledger = ledger
        self._bell = bell
        self._holder = holder

    def tick(self) -> int:
        """One look; gives back how many messages were sent. Raises Unavailable, kombu's OperationalError."""
        with self._ledger.transaction() as connection:
            if not take_lock(connection, RECONCILE_LOCK, self._holder, seconds=5 * RECONCILE_SECONDS):
                return 0
            for job_id in fail_abandoned_jobs(connection):
                logger.warning("job %s failed: its producer stopped halfway", job_id)
            drop_leftover_chunks(connection)
            hold_leftover_chunks(connection)
            due = count_due(connection, limit=MAX_OUTSTANDING)
        if not due:
            return 0
        missing = due - self._bell.waiting()
        if missing <= 0:
            return 0
        with self._ledger.transaction() as connection:
            chunk_ids = chunks_to_ring(connection, limit=missing)
        self._bell.silent = False
        return self._bell.ring(chunk_ids)


def reconcile_step(settings: Settings) -> type[bootsteps.Step]:
    """The bootstep that runs the reconciler in a worker's main process."""

    class Reconcile(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        """Runs the reconciler every few seconds."""

        requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

        def __init__(self, _worker: Any, **_: Any) -> None:
            self._timer: Any = None

        def start(self, worker: Any) -> None:
            # No pool of connections: one that is open at a fork would be shared with the child.
            ledger = Ledger(settings.ledger, pooled=False)
            holder = f"{socket.gethostname()}/{os.getpid()}"
            reconciler = Reconciler(ledger, Bell(worker.app), holder=holder)

            def tick() -> None:
                try:
                    if sent := reconciler.tick():
                        logger.info("rang again for %d chunks", sent)
                except (LabelmillError, OperationalError, OSError) as error:
                    logger.warning("reconciling is put off: %s", error)

            self._timer = worker.timer.call_repeatedly(RECONCILE_SECONDS, tick)

        def stop(self, _worker: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Reconcile
