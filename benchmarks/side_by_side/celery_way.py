"""Celery: one task per image (`one`), or many together by celery-batches (`batches`).

The worker has a process for each core. This process sends a message for each image, then waits for the rows:
without a result backend, only the table shows progress.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.side_by_side.protocol import Classify, Places, find_files, serve

#: Seconds between two counts of the rows: counting takes time from the workers.
_POLL_SECONDS: Final = 0.02

_START_SECONDS: Final = 120.0


@contextmanager
def celery_way(places: Places) -> Iterator[Classify]:
    """Run the worker. Raises RuntimeError if it does not start, or dies."""
    import psycopg

    os.environ["SIDE_BY_SIDE_PLACES"] = places.to_json()
    from benchmarks.side_by_side import celery_tasks

    task = celery_tasks.classify_one if sys.argv[2] == "one" else celery_tasks.classify_many
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", celery_tasks.__name__, "worker"),
            *("--concurrency", str(places.processes), "--loglevel", "warning"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ],
        stdout=2,
    )

    def wait(message: str) -> None:
        if worker.poll() is not None:
            raise RuntimeError(message)
        time.sleep(_POLL_SECONDS)

    def classify(folder: str, job_id: str) -> float:
        paths = find_files(folder)
        with celery_tasks.app.producer_pool.acquire(block=True) as producer:
            for index, path in enumerate(paths):
                task.apply_async((job_id, index, path), producer=producer)
        count = "SELECT count(*) FROM predictions WHERE job_id = %s"
        while connection.execute(count, (job_id,)).fetchone() != (len(paths),):
            wait("the worker died; it said why above")
        return 0.0

    try:
        deadline = time.monotonic() + _START_SECONDS
        while len(list(Path(places.scratch).glob("*.ready"))) < places.processes:
            wait("the worker does not start")
            if time.monotonic() > deadline:
                raise RuntimeError("the worker does not start in time")
        with psycopg.connect(places.database, autocommit=True) as connection:
            yield classify
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    serve(celery_way)
