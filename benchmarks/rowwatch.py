"""Waits for a row of the ledger, seen from outside: another connection, and next to no work for anybody."""

from __future__ import annotations

import time
from typing import Any, Final, Self

from jobs.ledger import Ledger

#: How long to wait before asking again: asking takes some 0.05 ms of it.
ASK_AGAIN_SECONDS: Final = 0.0005


class RowWatch:
    """A context manager: inside it a connection of its own is open."""

    def __init__(self, ledger: Ledger) -> None:
        self._connection = ledger.engine.raw_connection()
        driver: Any = self._connection.driver_connection
        if ledger.is_sqlite:
            self._query = "SELECT 1 FROM predictions WHERE job_id = ?"
        else:
            driver.autocommit = True  # each question sees what is committed by then
            self._query = "SELECT 1 FROM predictions WHERE job_id = %s"
        self._cursor: Any = driver.cursor()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cursor.close()
        self._connection.detach()  # not for anybody else: it commits by itself
        self._connection.close()

    def wait(self, job_id: str, *, seconds: float) -> None:
        """Until the job of one image has its row. Raises RuntimeError after so many seconds."""
        deadline = time.perf_counter() + seconds
        while self._cursor.execute(self._query, (job_id,)).fetchone() is None:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"the image of job {job_id} has no row after {seconds:g} seconds")
            time.sleep(ASK_AGAIN_SECONDS)
