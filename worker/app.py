"""The Celery application of the workers and of beat: `celery -A worker.app worker`.

The parent process imports this module but never TensorFlow; each child loads its models after the fork.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import celeryd_after_setup, worker_process_init, worker_process_shutdown

from jobs.errors import LabelmillError, SettingsError
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE, WEBHOOK_QUEUE
from jobs.queue import make_app
from jobs.settings import Settings
from worker.celery_patches import (
    exit_at_once,
    filter_messages,
    limit_cold_shutdown,
    limit_failed_shutdown,
    record_deaths,
)
from worker.logs import refuse_to_start, set_up_logs
from worker.message_filter import rebuild_or_drop
from worker.predicting.context import close_process_context, process_context
from worker.reconciler import reconcile_step
from worker.tasks import register_tasks

logger = logging.getLogger(__name__)

try:
    settings = Settings.load()
    app = make_app(settings)
    app.conf.beat_scheduler = "worker.schedule:SlotScheduler"
except SettingsError as error:
    refuse_to_start(error)
set_up_logs(app, settings)
filter_messages(rebuild_or_drop)
limit_cold_shutdown()
limit_failed_shutdown()
record_deaths()
app.conf.worker_concurrency = settings.processes
app.conf.worker_consumer = "worker.celery_patches:OutageTolerantConsumer"
register_tasks(app, settings)
app.steps["worker"].add(reconcile_step(settings))


@celeryd_after_setup.connect
def _classify_only(instance: Any, **_: Any) -> None:
    """Take nothing else on a worker that classifies: a training or a slow webhook would block predictions."""
    queues = instance.app.amqp.queues
    if CLASSIFY_QUEUE in queues.consume_from:
        queues.deselect([RETRAIN_QUEUE, WEBHOOK_QUEUE])


@celeryd_after_setup.connect
def _store_concurrency(instance: Any, **_: Any) -> None:
    """Store the number of children, which `-c` may have set: each child uses its share of the cores."""
    instance.app.conf.worker_concurrency = instance.concurrency


@worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Load the champions before the first message, so that loading does not count against the time limit.

    If there is none, or one cannot be loaded, the process starts without it.
    """
    if CLASSIFY_QUEUE not in app.amqp.queues.consume_from:
        return
    try:
        process_context(settings, app.conf.worker_concurrency).warm_up()
    except LabelmillError as error:
        logger.warning("no champion was loaded: %s", error)


@worker_process_shutdown.connect
def _close_context(exitcode: int, **_: Any) -> None:
    """Close the child's context, which also sends its last spans."""
    close_process_context()
    exit_at_once(exitcode)
