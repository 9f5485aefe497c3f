"""The Celery tasks: decode the message, call a plain function, and no more.

The chunk's own way goes on in `worker.predicting.pipeline`.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, Final

from celery import Celery, Task

from jobs.errors import LabelmillError
from jobs.ledger.progress import chunk_exists
from jobs.messages import ChunkMessage
from jobs.queue import CLASSIFY_TASK, RETRAIN_TASK
from jobs.settings import Settings
from worker.bench import Bench
from worker.gate import note_dropped
from worker.predicting.pipeline import classify_chunk
from worker.requests import ChunkRequest, LastingRequest

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


class _ChunkTask(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose message names a chunk."""

    Request = ChunkRequest


class _LastingTask(Task):  # type: ignore[misc]  # Celery has no types
    """Any other task."""

    Request = LastingRequest


def _is_known(chunk_id: str, bench: Bench) -> bool:
    with bench.ledger.reading() as connection:
        return chunk_exists(connection, chunk_id)


def register_tasks(app: Celery, settings: Settings) -> None:
    """Makes the tasks of this application."""
    app.labelmill_settings = settings

    @app.task(name=CLASSIFY_TASK, base=_ChunkTask)
    def classify(*args: Any, **kwargs: Any) -> None:
        """Classifies the chunk that the message names."""
        try:
            chunk_id = ChunkMessage.decode(args, kwargs).chunk_id
            bench = bench_of_this_process(settings, app.conf.worker_concurrency)
            if not classify_chunk(chunk_id, bench) and not _is_known(chunk_id, bench):
                note_dropped("it names no chunk of this ledger")
        except LabelmillError as error:
            # Told in one line: whatever it is, the ledger knows what is still to be done.
            logger.warning("%s", error)

    @app.task(
        name=RETRAIN_TASK,
        base=_LastingTask,
        acks_late=False,  # it outlives any visibility timeout; the run's row says what became of it
        soft_time_limit=RETRAIN_TIME_LIMIT_SECONDS,
        time_limit=RETRAIN_TIME_LIMIT_SECONDS + 60,
    )
    def retrain() -> None:
        """Trains, evaluates, and promotes what is better."""
        from worker.learning.retrain import retrain as run
        from worker.learning.training import Recipe

        try:
            # Another seed each time: the same one on the same data gives the same model again.
            run(settings, recipe=Recipe(seed=secrets.randbelow(2**31)))
        except LabelmillError as error:
            logger.warning("%s", error)
