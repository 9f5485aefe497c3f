"""Removal: of a job by `labelmill purge`, row by row, and of a partition, which Labelmill does not use.

The table of predictions has no partitions. This gives it some, to measure what they would cost.
"""

from __future__ import annotations

import time
from typing import Any, Final
from unittest.mock import patch

from benchmarks.large_job import fill_predictions, make_large_job
from benchmarks.scale.ledgers import CHUNK_IMAGES, PreparedLedger, execute, noting
from benchmarks.scale.rows import write_rows
from jobs.ids import new_id
from jobs.store import Store
from labelmill.console import say
from labelmill.purging import Purge

#: One partition per day: the days before today and after it.
_DAYS_BEFORE: Final = 20
_DAYS_AFTER: Final = 10

_DAY_SECONDS: Final = 86_400


def measure_purge(prepared: PreparedLedger, store: Store, *, images: int) -> dict[str, Any]:
    """Return seconds and bytes of the log for removing a finished job, and for the VACUUM after it."""
    with prepared.ledger.transaction() as connection:
        make_large_job(connection, prepared.model_id, images, chunk_images=CHUNK_IMAGES, days_ago=2)
    execute(prepared.ledger, "VACUUM ANALYZE predictions")
    prepared.settle()
    purge = Purge(prepared.ledger, store, dry_run=False, on_progress=lambda _purged: None)
    with noting(prepared.ledger) as purged:
        purge.whole_jobs(days=1)
    assert purge.purged.predictions == images
    with noting(prepared.ledger) as vacuumed:
        execute(prepared.ledger, "VACUUM predictions")
    found = {"rows": images, "purge": purged, "vacuum": vacuumed}
    say(f"retention: {found}")
    return found


def measure_partitions(prepared: PreparedLedger, *, images: int, chunks: int) -> dict[str, Any]:
    """Write the same rows into a table with a partition per day, and drop a day."""
    plain = write_rows(prepared, 1, chunks)
    _make_partitions(prepared)
    parted = write_rows(prepared, 1, chunks)
    with prepared.ledger.transaction() as connection:
        fill_predictions(connection, _id_of_day(-1.5), images)
    prepared.settle()
    with noting(prepared.ledger) as dropped:
        execute(prepared.ledger, f"DROP TABLE predictions_{_DAYS_BEFORE - 2}")
    found = {"rows": images, "drop": dropped, "one_writer": parted, "one_writer_without": plain}
    say(f"partitions: {found}")
    return found


def _make_partitions(prepared: PreparedLedger) -> None:
    """Replace the predictions by an empty table of the same shape, with a partition per day.

    By the job's id: ids sort by time, so a job's rows stay together, next to those of the same day's jobs.
    """
    execute(prepared.ledger, "ALTER TABLE predictions RENAME TO predictions_plain")
    execute(prepared.ledger, "CREATE TABLE predictions (LIKE predictions_plain) PARTITION BY RANGE (job_id)")
    execute(prepared.ledger, 'ALTER TABLE predictions ADD PRIMARY KEY (job_id, "index")')
    for number, day in enumerate(range(-_DAYS_BEFORE, _DAYS_AFTER)):
        first, beyond = _id_of_day(day), _id_of_day(day + 1)
        execute(
            prepared.ledger,
            f"CREATE TABLE predictions_{number} PARTITION OF predictions"
            f" FOR VALUES FROM ('{first}') TO ('{beyond}')",
        )


def _id_of_day(days: float) -> str:
    """Return the first id of a moment so many days from now. The same each time."""
    moment = _NOW + int(days * _DAY_SECONDS * 1e9)
    with (
        patch("jobs.ids.time.time_ns", return_value=moment),
        patch("jobs.ids.secrets.randbits", return_value=0),
    ):
        return new_id()


_NOW: Final = time.time_ns()
