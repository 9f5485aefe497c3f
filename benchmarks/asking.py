"""Asks the ledger about a job, seen from outside: another connection, and next to no work for anybody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from jobs.ledger import Ledger

#: Gives back the first row of the answer about the job of this id; None where there is none.
Ask = Callable[[str], Any]

ROW_IS_THERE: Final = "SELECT 1 FROM predictions WHERE job_id = ?"

#: How long to wait before asking again for a row: asking takes some 0.05 ms of it.
ASK_AGAIN_SECONDS: Final = 0.0005


@contextmanager
def asking(ledger: Ledger, question: str) -> Iterator[Ask]:
    """Inside it a connection of its own is open. `question`: SQL, with one `?` for a job's id. By the driver:
    what is measured must not wait for who measures.
    """
    connection = ledger.engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        if not ledger.is_sqlite:
            driver.autocommit = True  # each question sees what is committed by then, as on SQLite it does
            question = question.replace("?", "%s")
        cursor = driver.cursor()  # one for all: with a new one each time, asking takes half as long again
        yield lambda job_id: cursor.execute(question, (job_id,)).fetchone()
    finally:
        connection.invalidate()  # not for anybody else: it commits by itself


def wait_for_row(ask: Ask, job_id: str, *, seconds: float) -> None:
    """Until the job of one image has its row; `ask` asks whether `ROW_IS_THERE`. Raises RuntimeError after so
    many seconds.
    """
    deadline = time.perf_counter() + seconds
    while ask(job_id) is None:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the image of job {job_id} has no row after {seconds:g} seconds")
        time.sleep(ASK_AGAIN_SECONDS)
