"""The reconciler: sends wake-ups if fewer wait in a queue than chunks or webhooks are due in the ledger.

It also releases expired claims, fails abandoned jobs, and ends training runs whose trainer died. Every worker
runs one on the timer of its main process; a lock in the ledger lets only one at a time do the work. The same
timer writes the worker's heartbeat (`worker.heartbeat`).

It never runs in a thread: if a thread held one of SQLite's locks during a fork, nothing would ever release
the child's copy.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from celery import bootsteps
from kombu.exceptions import OperationalError

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.api.deliveries import count_useful_senders
from jobs.ledger.free_space import prove_room
from jobs.ledger.jobs.control import drop_leftover_chunks, hold_leftover_chunks
from jobs.ledger.learning.runs import FailureDetector, active_runs, end_lost_runs, interrupt_runs_of
from jobs.ledger.locks import RECONCILE_LOCK, take_lock
from jobs.ledger.maintenance import (
    count_due,
    end_stalled_sessions,
    fail_abandoned_jobs,
    has_expired_claim,
    release_expired_claims,
)
from jobs.ledger.workers import GONE_SECONDS, forget_lost_workers, lost_workers, owner_name
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE, WEBHOOK_QUEUE, WEBHOOK_TASK
from jobs.queue import MAX_WAITING, Publisher
from jobs.schema import RunState
from jobs.settings import Settings
from worker.heartbeat import Heartbeat, children_of

logger = logging.getLogger(__name__)

#: The interval of each worker's reconciler.
RECONCILE_SECONDS: Final = 2.0

#: A worker is logged within this time after it counts as gone, so another reconciler does not log it again.
LOG_LOST_SECONDS: Final = 30.0


class Reconciler:
    """Sends missing wake-ups, and ends claims, jobs and runs whose process died."""

    def __init__(
        self, ledger: Ledger, publisher: Publisher, *, holder: str, lease_seconds: float = 60.0
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._outage_at = -math.inf
        self._detector = FailureDetector()
        self._lost: set[str] = set()  # workers that were logged as gone

    def note_outage(self) -> None:
        """Note that the ledger is unavailable: for a lease from now, an expired claim is nobody's fault."""
        self._outage_at = time.monotonic()

    def tick(self) -> int:
        """Run once. Return the number of wake-ups sent to workers that classify.

        Raises Unavailable, kombu's OperationalError.
        """
        with self._ledger.transaction() as connection:
            # In a separate transaction: a process that stalls later must not block the others here.
            if not take_lock(connection, RECONCILE_LOCK, self._holder, seconds=5 * RECONCILE_SECONDS):
                return 0
        after_outage = time.monotonic() - self._outage_at < self._lease_seconds
        with self._ledger.transaction() as connection:
            if ended := end_stalled_sessions(connection):
                logger.warning("ended %d sessions that stalled in the middle of writing", ended)
            if has_expired_claim(connection):
                # On a full disk a worker cannot release its chunk, though this may be able to: then it waits,
                # too, and no crash is counted.
                prove_room(connection)
            if expired := release_expired_claims(connection, after_outage=after_outage):
                logger.warning("released %d chunks whose lease had run out", expired)
            for job_id in fail_abandoned_jobs(connection):
                logger.warning("job %s failed: its producer stopped halfway", job_id, extra={"job": job_id})
            lost = lost_workers(connection, seconds=LOG_LOST_SECONDS)
            drop_leftover_chunks(connection)
            hold_leftover_chunks(connection)
            forget_lost_workers(connection)
            for run in end_lost_runs(connection, self._detector):
                logger.warning(
                    "training run %s is %s: %s", run.id, run.state, run.error, extra={"run": run.id}
                )
            pending = [run.id for run in active_runs(connection) if run.state == RunState.PENDING]
            due = count_due(connection, limit=MAX_WAITING)
            senders = count_useful_senders(connection)
        self._log_lost({} if after_outage else lost)  # in an outage, nobody could send a heartbeat
        publisher = self._publisher.reset()
        if pending and not publisher.waiting(RETRAIN_QUEUE):
            for run_id in pending:
                publisher.request_run(run_id)
        if senders:
            publisher.wake_up(senders - publisher.waiting(WEBHOOK_QUEUE), task=WEBHOOK_TASK)
        missing = due - publisher.waiting() if due else 0
        return publisher.wake_up(missing) if missing > 0 else 0

    def _log_lost(self, lost: Mapping[str, str]) -> None:
        for name, queue in lost.items():
            if name not in self._lost:
                logger.warning(
                    "%s (%s) has sent no heartbeat for %g s: it died, or cannot reach the ledger",
                    name,
                    queue,
                    GONE_SECONDS,
                )
        self._lost = set(lost)


def reconcile_step(settings: Settings) -> type[bootsteps.Step]:
    """Return the bootstep that runs the reconciler in a worker's main process."""

    class Reconcile(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        """Runs the reconciler every few seconds."""

        requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

        def __init__(self, _worker: Any, **_: Any) -> None:
            self._timer: Any = None
            self._ledger: Ledger
            self._heartbeat: Heartbeat | None = None

        def start(self, worker: Any) -> None:
            ledger = Ledger.for_main_process(settings.ledger)
            holder = owner_name(os.getpid())
            publisher = Publisher(worker.app)
            reconciler = Reconciler(ledger, publisher, holder=holder, lease_seconds=settings.lease_seconds)
            queue = next(iter(worker.app.amqp.queues.consume_from))
            disks = reported_disks(settings, queue)
            heartbeat = Heartbeat(queue=queue, alive_file=settings.alive_file(queue), disks=disks)
            problem = ""

            def tick() -> None:
                nonlocal problem
                heartbeat.show_alive()
                found = _tick(ledger, heartbeat, reconciler, worker.pool)
                if found and not problem:
                    logger.warning("no heartbeat is sent, and reconciling waits: %s", found)
                elif problem and not found:
                    logger.info("heartbeat and reconciling go on")
                problem = found

            self._timer = worker.timer.call_repeatedly(RECONCILE_SECONDS, tick)
            self._ledger, self._heartbeat = ledger, heartbeat

        def stop(self, worker: Any) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._heartbeat is not None:
                with _errors_logged("this worker counts as alive until its heartbeat expires: %s"):
                    self._heartbeat.end(self._ledger)
                self._heartbeat = None
            if RETRAIN_QUEUE in worker.app.amqp.queues.consume_from:
                # The main process waits for its children next. A training takes minutes, but a child that has
                # lost its run ends soon.
                owners = [owner_name(pid) for pid in worker.pool.info["processes"]]
                with (
                    _errors_logged("the training run was not interrupted: %s"),
                    closing(Ledger.for_main_process(settings.ledger)) as ledger,
                    ledger.transaction() as connection,
                ):
                    interrupt_runs_of(connection, owners, error="its trainer was stopped")

    return Reconcile


def reported_disks(settings: Settings, queue: str) -> dict[str, Path | None]:
    """Return paths on the disks that this queue's workers report.

    A sender of webhooks does not use the store, so on its machine the path may be on another disk.
    """
    store = settings.store_folder if queue in (CLASSIFY_QUEUE, RETRAIN_QUEUE) else None
    return {"ledger": settings.ledger_file, "store": store}


def _tick(ledger: Ledger, heartbeat: Heartbeat, reconciler: Reconciler, pool: Any) -> str:
    """Send the heartbeat and reconcile. Return why the ledger could not be used, or ""."""
    try:
        heartbeat.tick(ledger, *children_of(pool))
        if sent := reconciler.tick():
            logger.info("sent %d missing wake-ups", sent)
    except OperationalError as error:
        # The consumer has logged that the broker cannot be reached (`worker.celery_patches`).
        logger.debug("reconciling waits: %s", error)
    except (LabelmillError, OSError) as error:
        reconciler.note_outage()
        return str(error)
    return ""


@contextmanager
def _errors_logged(message: str) -> Iterator[None]:
    try:
        yield
    except LabelmillError as error:
        logger.warning(message, error)
