"""The Celery tasks: each checks its message and calls a plain function.

The next step of a chunk is `worker.predicting.pipeline`.
"""

from __future__ import annotations

import logging
import os
from contextlib import closing
from typing import Any, Final

from celery import Celery, Task
from celery.signals import task_postrun
from structlog.contextvars import bind_contextvars, clear_contextvars

from jobs.errors import LabelmillError, NotFound
from jobs.ledger import Ledger
from jobs.ledger.runs import RunClaim, claim_run, get_run
from jobs.messages import CLASSIFY_TASK, RETRAIN_TASK, check_wake_up, run_id_of
from jobs.settings import Settings
from worker.context import WorkerContext, owner_name
from worker.message_filter import note_dropped
from worker.requests import ChunkRequest, RunRequest

logger = logging.getLogger(__name__)

#: A training that takes longer than this is considered hanging.
RETRAIN_TIME_LIMIT_SECONDS: Final = 6 * 3600

_context: WorkerContext | None = None


def process_context(settings: Settings, processes: int) -> WorkerContext:
    """Return this process's context; create it at the first call."""
    global _context
    if _context is None:
        _context = WorkerContext(settings, processes=processes)
    return _context


def close_process_context() -> None:
    """Close this process's context if there is one."""
    global _context
    if _context is not None:
        _context.close()
        _context = None


class _ClassifyTask(Task):  # type: ignore[misc]  # Celery has no types
    Request = ChunkRequest


class _RetrainTask(Task):  # type: ignore[misc]  # Celery has no types
    Request = RunRequest


def _claim_run(run_id: str, settings: Settings) -> RunClaim | None:
    """Claim a training run, or log why it cannot be claimed and return None. Raises Unavailable."""
    with closing(Ledger(settings.ledger)) as ledger, ledger.transaction() as connection:
        claim = claim_run(connection, run_id, owner=owner_name(os.getpid()))
        if claim is None:
            try:
                state = get_run(connection, run_id).state
                logger.info("training run %s cannot be claimed: it is %s", run_id, state)
            except NotFound:
                note_dropped("it names no training run of this ledger")
        return claim


@task_postrun.connect
def _forget_ids(**_: Any) -> None:
    """Remove the task's ids from the log context, after Celery has logged the end of the task."""
    clear_contextvars()


def register_tasks(app: Celery, settings: Settings) -> None:
    """Define the tasks of this application."""
    app.labelmill_settings = settings

    # Not shared: another application in this process has its own tasks.
    @app.task(name=CLASSIFY_TASK, base=_ClassifyTask, shared=False)
    def classify(*args: Any, **kwargs: Any) -> None:
        """Classify the next due chunk."""
        try:
            check_wake_up(args, kwargs)
            # Imported in the child, because this imports NumPy and Pillow.
            from worker.predicting.pipeline import classify_next

            classify_next(process_context(settings, app.conf.worker_concurrency))
        except LabelmillError as error:
            # One line without a traceback is enough: the ledger records what remains to be done.
            logger.warning("%s", error)

    @app.task(
        name=RETRAIN_TASK,
        shared=False,
        base=_RetrainTask,
        acks_late=False,  # it outlives the visibility timeout; the run's row records how it ended
        soft_time_limit=RETRAIN_TIME_LIMIT_SECONDS,
        time_limit=RETRAIN_TIME_LIMIT_SECONDS + 60,
    )
    def retrain(*args: Any, **kwargs: Any) -> None:
        """Execute the training run that the message names."""
        try:
            run_id = run_id_of(args, kwargs)
            bind_contextvars(run=run_id)
            claim = _claim_run(run_id, settings)
            if claim is not None:
                # Imported in the child, and by trainers only, because this imports TensorFlow.
                from worker.learning.retrain import retrain as run

                run(settings, claim)
        except LabelmillError as error:
            logger.warning("%s", error)
