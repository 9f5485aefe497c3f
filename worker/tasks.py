"""The Celery tasks: decode the message, call a plain function, and no more.

The chunk's own way goes on in `worker.predicting.pipeline`.
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
from jobs.ledger.progress import chunk_exists
from jobs.ledger.runs import RunClaim, claim_run, get_run
from jobs.messages import Message
from jobs.queue import CLASSIFY_TASK, RETRAIN_TASK
from jobs.settings import Settings
from worker.bench import Bench, owner_name
from worker.gate import note_dropped
from worker.predicting.pipeline import classify_chunk
from worker.requests import ChunkRequest, RunRequest

logger = logging.getLogger(__name__)

#: A training that takes longer than this hangs.
RETRAIN_TIME_LIMIT_SECONDS: Final = 6 * 3600

_bench: Bench | None = None


def bench_of_this_process(settings: Settings, processes: int) -> Bench:
    """The process's tools, made at its first need."""
    global _bench
    if _bench is None:
        _bench = Bench(settings, processes=processes)
    return _bench


def close_bench_of_this_process() -> None:
    """For a process that ends."""
    global _bench
    if _bench is not None:
        _bench.close()
        _bench = None


class _ChunkTask(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose message names a chunk."""

    Request = ChunkRequest


class _RunTask(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose message names a training run."""

    Request = RunRequest


def _is_known(chunk_id: str, bench: Bench) -> bool:
    with bench.ledger.reading() as connection:
        return chunk_exists(connection, chunk_id)


def _claim_run(run_id: str, settings: Settings) -> RunClaim | None:
    """Raises Unavailable."""
    with closing(Ledger(settings.ledger)) as ledger, ledger.transaction() as connection:
        claim = claim_run(connection, run_id, owner=owner_name(os.getpid()))
        if claim is None:
            try:
                logger.info(
                    "training run %s is not to be had: it is %s", run_id, get_run(connection, run_id).state
                )
            except NotFound:
                note_dropped("it names no training run of this ledger")
        return claim


@task_postrun.connect
def _forget_ids(**_: Any) -> None:
    """The ids that the log's lines were about. After the task, when Celery has said what became of it."""
    clear_contextvars()


def register_tasks(app: Celery, settings: Settings) -> None:
    """Makes the tasks of this application."""
    app.labelmill_settings = settings

    # Not shared: another application in this process has tasks of its own.
    @app.task(name=CLASSIFY_TASK, base=_ChunkTask, shared=False)
    def classify(*args: Any, **kwargs: Any) -> None:
        """Classifies the chunk that the message names."""
        try:
            chunk_id = Message.decode(args, kwargs).id
            bind_contextvars(chunk=chunk_id)
            bench = bench_of_this_process(settings, app.conf.worker_concurrency)
            if not classify_chunk(chunk_id, bench) and not _is_known(chunk_id, bench):
                note_dropped("it names no chunk of this ledger")
        except LabelmillError as error:
            # Told in one line: whatever it is, the ledger knows what is still to be done.
            logger.warning("%s", error)

    @app.task(
        name=RETRAIN_TASK,
        shared=False,
        base=_RunTask,
        acks_late=False,  # it outlives any visibility timeout; the run's row says what became of it
        soft_time_limit=RETRAIN_TIME_LIMIT_SECONDS,
        time_limit=RETRAIN_TIME_LIMIT_SECONDS + 60,
    )
    def retrain(*args: Any, **kwargs: Any) -> None:
        """Does the training run that the message names."""
        try:
            run_id = Message.decode(args, kwargs).id
            bind_contextvars(run=run_id)
            claim = _claim_run(run_id, settings)
            if claim is not None:
                # Imported in the child, and by trainers only: TensorFlow comes with it.
                from worker.learning.retrain import retrain as run

                run(settings, claim)
        except LabelmillError as error:
            logger.warning("%s", error)
