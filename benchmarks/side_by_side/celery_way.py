"""Celery: one task per image (`one`), or many together by celery-batches (`batches`).

The worker has a process for each core. This process sends a message for each image, then waits for the rows:
without a result backend, only the table shows progress.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.harness.celery_worker import celery_worker
from benchmarks.side_by_side.protocol import Classify, Places, answer, find_files

#: Seconds between two counts of the rows: counting takes time from the workers.
_POLL_SECONDS: Final = 0.02


@contextmanager
def celery_way(places: Places) -> Iterator[Classify]:
    """Run the worker. Raises RuntimeError if it does not start, or dies."""
    import psycopg

    os.environ["SIDE_BY_SIDE_PLACES"] = places.to_json()
    from benchmarks.side_by_side import celery_tasks

    task = celery_tasks.classify_one if sys.argv[2] == "one" else celery_tasks.classify_many

    def classify(folder: str, job_id: str) -> float:
        paths = find_files(folder)
        with celery_tasks.app.producer_pool.acquire(block=True) as producer:
            for index, path in enumerate(paths):
                task.apply_async((job_id, index, path), producer=producer)
        count = "SELECT count(*) FROM predictions WHERE job_id = %s"
        while connection.execute(count, (job_id,)).fetchone() != (len(paths),):
            if worker.poll() is not None:
                raise RuntimeError("the worker died; it said why in its log")
            time.sleep(_POLL_SECONDS)
        return 0.0

    with (
        celery_worker(
            celery_tasks.__name__, processes=places.processes, folder=Path(places.scratch), environment={}
        ) as worker,
        psycopg.connect(places.database, autocommit=True) as connection,
    ):
        yield classify


if __name__ == "__main__":
    answer(celery_way)
