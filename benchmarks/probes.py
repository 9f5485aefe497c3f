"""Queries about one job, on a connection of its own, that cost the workers next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from jobs.ledger import Ledger

#: Returns the first row of the answer about the job with this id, or None.
Probe = Callable[[str], Any]

ROW_IS_THERE: Final = "SELECT 1 FROM predictions WHERE job_id = ?"

#: Seconds between two queries for a row. A query takes about 0.05 ms.
PROBE_SECONDS: Final = 0.0005


@contextmanager
def open_probe(ledger: Ledger, question: str) -> Iterator[Probe]:
    """Open a connection for one query: `question`, SQL with one `?` for a job's id.

    It uses the driver directly, so that the workers hardly notice the measurement.
    """
    connection = ledger.engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        if not ledger.is_sqlite:
            driver.autocommit = True  # each query sees what is committed by then, as it does on SQLite
            question = question.replace("?", "%s")
        cursor = driver.cursor()  # kept: with a new one each time, a query takes half as long again
        yield lambda job_id: cursor.execute(question, (job_id,)).fetchone()
    finally:
        connection.invalidate()  # not back into the pool: it commits by itself


def wait_for_row(probe: Probe, job_id: str, *, seconds: float) -> None:
    """Wait until the job of one image has its row; `probe` has the query `ROW_IS_THERE`.

    Raises RuntimeError after so many seconds.
    """
    deadline = time.perf_counter() + seconds
    while probe(job_id) is None:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the image of job {job_id} has no row after {seconds:g} seconds")
        time.sleep(PROBE_SECONDS)
