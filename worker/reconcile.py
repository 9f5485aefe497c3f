"""The reconciler: rings again for every chunk that waits without a message or whose worker died, and for the
training run that waits; a run whose trainer died it ends.

Every worker runs one, on the timer of its main process; a lock in the ledger lets one at a time do the work.
The same timer gives the worker's sign of life (`worker.presence`).
It runs between the main loop's other doings, never in a thread of its own: a thread that holds a lock of
SQLite's at the moment of a fork would leave the child with a lock nobody opens.
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from typing import Any, Final

from celery import bootsteps
from kombu.exceptions import OperationalError

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.gathering import overdue_small
from jobs.ledger.lost_runs import Silence, end_lost_runs
from jobs.ledger.pausing import hold_leftover_chunks
from jobs.ledger.runs import interrupt_runs_of, run_to_ring
from jobs.ledger.upkeep import (
    RECONCILE_LOCK,
    chunks_to_ring,
    count_due,
    drop_leftover_chunks,
    end_standing_sessions,
    fail_abandoned_jobs,
    take_lock,
)
from jobs.ledger.workers import forget_lost_workers
from jobs.queue import MAX_OUTSTANDING, RETRAIN_QUEUE, Bell
from jobs.settings import Settings
from worker.bench import owner_name
from worker.presence import WorkerRow, ready_children

logger = logging.getLogger(__name__)

#: How often each worker looks.
RECONCILE_SECONDS: Final = 2.0


class Reconciler:
    """Compares what the ledger says is due with what waits on the queue, and sends what is missing."""

    def __init__(self, ledger: Ledger, bell: Bell, *, holder: str) -> None:
        self._ledger = ledger
        self._bell = bell
        self._holder = holder
        self._silence = Silence()

    def tick(self) -> int:
        """One look; gives back for how many chunks was rung. Raises Unavailable, kombu's OperationalError."""
        with self._ledger.transaction() as connection:
            # In a transaction of its own: who stands still later must not keep the others waiting here.
            if not take_lock(connection, RECONCILE_LOCK, self._holder, seconds=5 * RECONCILE_SECONDS):
                return 0
        with self._ledger.transaction() as connection:
            if ended := end_standing_sessions(connection):
                logger.warning("ended %d sessions that stood still in the middle of writing", ended)
            for job_id in fail_abandoned_jobs(connection):
                logger.warning("job %s failed: its producer stopped halfway", job_id, extra={"job": job_id})
            drop_leftover_chunks(connection)
            hold_leftover_chunks(connection)
            forget_lost_workers(connection)
            for run in end_lost_runs(connection, self._silence):
                logger.warning(
                    "training run %s is %s: %s", run.id, run.state, run.error, extra={"run": run.id}
                )
            run_id = run_to_ring(connection)
            due = count_due(connection, limit=MAX_OUTSTANDING)
            small = overdue_small(connection)
        if run_id is not None and not self._bell.waiting(RETRAIN_QUEUE):
            self._bell.ring_for_run(run_id)
        if not due:
            return 0
        bell = self._bell.anew()
        # However many messages wait for others: its own may be lost, and that of whoever would ring for it.
        rung = 0 if small is None else bell.ring_for_small(small)
        missing = due - bell.waiting()
        if missing <= 0:
            return rung
        with self._ledger.transaction() as connection:
            waiting = chunks_to_ring(connection, limit=missing)
        return rung + bell.ring_for(waiting)


def reconcile_step(settings: Settings) -> type[bootsteps.Step]:
    """The bootstep that runs the reconciler in a worker's main process."""

    class Reconcile(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        """Runs the reconciler every few seconds."""

        requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

        def __init__(self, _worker: Any, **_: Any) -> None:
            self._timer: Any = None
            self._row: WorkerRow | None = None

        def start(self, worker: Any) -> None:
            ledger = Ledger.of_a_main_loop(settings.ledger)
            holder = owner_name(os.getpid())
            bell = Bell(worker.app)
            reconciler = Reconciler(ledger, bell, holder=holder)
            row = WorkerRow(ledger, bell, queue=next(iter(worker.app.amqp.queues.consume_from)))

            def tick() -> None:
                try:
                    if sent := reconciler.tick():
                        logger.info("rang again for %d chunks", sent)
                    row.tick(ready_children(worker.pool))
                except (LabelmillError, OperationalError, OSError) as error:
                    logger.warning("reconciling is put off: %s", error)

            self._timer = worker.timer.call_repeatedly(RECONCILE_SECONDS, tick)
            self._row = row

        def stop(self, worker: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._row is not None:
                _leave(self._row)
                self._row = None
            if RETRAIN_QUEUE in worker.app.amqp.queues.consume_from:
                _interrupt_training(settings, worker.pool.info["processes"])

    return Reconcile


def _leave(row: WorkerRow) -> None:
    try:
        row.end()
    except LabelmillError as error:
        logger.warning("this worker still counts as there for a while: %s", error)


def _interrupt_training(settings: Settings, pids: list[int]) -> None:
    """This trainer was told to stop, and waits for its children next. A training would take minutes: the
    child notices that its run is its own no more, and ends.
    """
    with closing(Ledger.of_a_main_loop(settings.ledger)) as ledger:
        try:
            with ledger.transaction() as connection:
                interrupt_runs_of(
                    connection, [owner_name(pid) for pid in pids], error="its trainer was told to stop"
                )
        except LabelmillError as error:
            logger.warning("the training under way is not told to end: %s", error)
