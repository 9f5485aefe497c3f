"""One message, one prediction: the simplest Celery worker, for `benchmarks.small_jobs`.

What its task does is in `benchmarks.plain_task`, which only the worker imports. Celery is as it comes, but
without results, which nobody reads; on the pipeline's broker, with keys of its own, and as many processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from celery import Celery

from benchmarks.processes import with_children
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion
from jobs.schema import JobState, db_now, jobs
from jobs.settings import Settings

TASK: Final = "plain.classify"

#: How long a process may take to import TensorFlow and to load the model.
START_SECONDS: Final = 120.0


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


def note_ready(settings: Settings) -> None:
    """Note that this process of the worker is warm."""
    folder = _ready(settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(os.getpid())).touch()


class PlainWorker:
    """Run the worker, warm, as a context manager."""

    def __init__(self, settings: Settings) -> None:
        """The ledger must have a champion, and the broker must run."""
        self._settings = settings
        self.ledger = Ledger(settings.ledger)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the worker. Raises RuntimeError if it does not start."""
        log = self._settings.home / "plain.log"
        with log.open("ab") as output:
            self._process = process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "benchmarks.plain_task", "worker"),
                    *("--concurrency", str(self._settings.processes), "--loglevel", "warning"),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ],
                env=os.environ | self._settings.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while len(list(_ready(self._settings).glob("*"))) < self._settings.processes:
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the plain worker does not start: {log.read_text()[-1000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
        self.ledger.close()

    def processes(self) -> list[int]:
        """Return the ids of its processes, the parent's first."""
        assert self._process is not None
        return with_children(self._process.pid)

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


def _ready(settings: Settings) -> Path:
    """Return the folder that has a file for each warm process."""
    return settings.home / "plain-ready"
