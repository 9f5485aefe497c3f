"""One message, one prediction: the simplest Celery worker, for `benchmarks.small_jobs`.

What its task does is in `benchmarks.plain_task`, which only the worker imports. Celery is as it comes, but
without results, which nobody reads; on the pipeline's broker, with keys of its own, and as many processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from celery import Celery

from benchmarks.harness.celery_worker import START_SECONDS, celery_worker
from benchmarks.harness.processes import with_children
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion
from jobs.schema import JobState, db_now, jobs
from jobs.settings import Settings

TASK: Final = "plain.classify"


def make_app(settings: Settings) -> Celery:
    """Make the Celery application of worker and sender."""
    app = Celery("plain", broker=settings.broker, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_default_queue="plain",
        broker_transport_options={"global_keyprefix": "plain:"},
        broker_connection_retry_on_startup=True,
        worker_proc_alive_timeout=START_SECONDS,
    )
    return app


class PlainWorker:
    """A worker that runs, and the ledger that it writes into."""

    def __init__(self, settings: Settings, ledger: Ledger, pid: int) -> None:
        self.ledger = ledger
        self._settings = settings
        self._pid = pid

    def processes(self) -> list[int]:
        """Return the ids of its processes, the parent's first."""
        return with_children(self._pid)

    def submit(self, paths: Sequence[str]) -> None:
        """Make a job for each image, all in one transaction, and then send a message for each."""
        made = [(new_id(), path) for path in paths]
        with self.ledger.transaction() as connection:
            champion = find_champion(connection)
            assert champion is not None
            row = jobs.insert().values(
                state=JobState.RUNNING,
                model_id=champion.id,
                total=1,
                created_at=db_now(),
                touched_at=db_now(),
            )
            connection.execute(row, [{"id": job_id} for job_id, _ in made])
        app = make_app(self._settings)
        with app.connection_for_write() as broker:
            for job_id, path in made:
                app.send_task(TASK, args=(job_id, path), connection=broker)
        app.close()


@contextlib.contextmanager
def plain_worker(settings: Settings, ledger: Ledger) -> Iterator[PlainWorker]:
    """Run the worker, warm. The ledger must have a champion, and the broker must run.

    Raises RuntimeError if it does not start.
    """
    with celery_worker(
        "benchmarks.plain_task",
        processes=settings.processes,
        folder=settings.home / "plain",
        environment=settings.environment(),
    ) as process:
        yield PlainWorker(settings, ledger, process.pid)
