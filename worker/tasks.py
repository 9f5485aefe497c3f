"""The Celery tasks: each checks its message and calls a plain function.

The next step of a chunk is `worker.predicting.pipeline`.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery import Celery
from celery.signals import task_postrun
from structlog.contextvars import bind_contextvars, clear_contextvars

from jobs.errors import LabelmillError
from jobs.messages import CLASSIFY_TASK, RETRAIN_TASK, WEBHOOK_TASK, check_wake_up, run_id_of
from jobs.settings import Settings
from worker.celery_patches import SlotFreeingRequest
from worker.children import ClaimingRequest
from worker.learning.task import execute_run
from worker.predicting.context import process_context
from worker.webhook_sender import deliver_due, process_ledger

logger = logging.getLogger(__name__)

#: A training that takes longer than this is considered hanging.
RETRAIN_TIME_LIMIT_SECONDS: Final = 6 * 3600


@task_postrun.connect
def _forget_ids(**_: Any) -> None:
    """Remove the task's ids from the log context, after Celery has logged the end of the task."""
    clear_contextvars()


def register_tasks(app: Celery, settings: Settings) -> None:
    """Define the tasks of this application."""
    app.labelmill_settings = settings

    # Not shared: another application in this process has its own tasks.
    @app.task(name=CLASSIFY_TASK, Request=ClaimingRequest, shared=False)
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
        Request=ClaimingRequest,
        shared=False,
        acks_late=False,  # it outlives the visibility timeout; the run's row records how it ended
        soft_time_limit=RETRAIN_TIME_LIMIT_SECONDS,
        time_limit=RETRAIN_TIME_LIMIT_SECONDS + 60,
    )
    def retrain(*args: Any, **kwargs: Any) -> None:
        """Execute the training run that the message names."""
        try:
            run_id = run_id_of(args, kwargs)
            bind_contextvars(run=run_id)
            execute_run(run_id, settings)
        except LabelmillError as error:
            logger.warning("%s", error)

    # It runs in threads, for which Celery has no time limit: the request has one, and resolving a name the
    # system's.
    @app.task(name=WEBHOOK_TASK, Request=SlotFreeingRequest, shared=False)
    def send_webhooks(*args: Any, **kwargs: Any) -> None:
        """Send the webhooks that are due."""
        try:
            check_wake_up(args, kwargs)
            deliver_due(process_ledger(settings), settings)
        except LabelmillError as error:
            logger.warning("%s", error)
