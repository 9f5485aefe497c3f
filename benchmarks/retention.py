"""`python -m benchmarks.retention`: purge a month of a large table of predictions.

PostgreSQL only, which makes the rows itself. It measures `labelmill purge --jobs`.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from functools import partial
from typing import Annotated, Any, Final
from unittest.mock import patch

import sqlalchemy as sa
import typer

from benchmarks.databases import Databases, Work, databases
from benchmarks.large_job import make_large_job
from benchmarks.report import milliseconds, seconds_of, write_measured
from benchmarks.scale.ledgers import CHUNK_IMAGES, PreparedLedger, execute, noting, prepared_ledger
from benchmarks.setup import RESULTS, Json, drop_developer_settings, run, settings_in, short_folder
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import Filter, page_of_predictions
from jobs.ledger.partitions import partitions
from jobs.storage.store import Store
from labelmill.client.migrating import upgrade
from labelmill.console.terminal import report_errors, say
from labelmill.operations.purging import Purge

PAGE: Final = 100

#: The rows are of jobs of this many images, which finished within this many days. The first month is purged.
_JOB_IMAGES: Final = 1_000_000
_DAYS: Final = 365
_MONTH_DAYS: Final = 30

_DAY_SECONDS: Final = 86_400


@report_errors
def main(
    rows: Annotated[int, typer.Option(min=20_000_000, help="Predictions.")] = 100_000_000,
    repeats: Annotated[int, typer.Option(min=10, help="How many pages are read.")] = 500,
    json: Json = RESULTS,
) -> None:
    """Measure how long a purge takes, and a page before and after it."""
    load_average = os.getloadavg()[0]
    drop_developer_settings()
    measured: dict[str, Any] = {"rows": rows, "job_images": _JOB_IMAGES, "days": _DAYS, "page": PAGE}
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        measured["database"] = both.facts
        store = Store(settings_in(home, both.bare_loop, 1).store)
        measured["purge"] = _measure_purge(both, store, rows, repeats)
    say(f"written to {write_measured('retention', measured, json, load_average)}")


def _measure_purge(both: Databases, store: Store, rows: int, repeats: int) -> dict[str, Any]:
    _make_year_old_ledger(both.pipeline)
    with prepared_ledger(both, both.pipeline) as prepared:
        jobs = _fill(prepared, rows)
        month = [job for job in jobs if job[:9] < _id(_DAYS - _MONTH_DAYS)[:9]]
        rest = jobs[len(month) :]
        found: dict[str, Any] = {"page_before": _pages(prepared.ledger, jobs, repeats)}
        purge = Purge(prepared.ledger, store, dry_run=False, on_progress=lambda _purged: None)
        with noting(prepared.ledger) as found["month"]:
            purge.whole_jobs(days=_DAYS - _MONTH_DAYS)
        found["month"] |= {
            "rows": purge.purged.predictions,
            "rows_still_on_disk": _rows_of(prepared.ledger, month),
            "partitions": _number_of_partitions(prepared.ledger),
        }
        found["page_after"] = _pages(prepared.ledger, rest, repeats)
        # For comparison, a job whose week stays.
        with noting(prepared.ledger) as found["one_job"]:
            purge.one_job(rest.pop())
        with noting(prepared.ledger) as found["vacuum_after_one_job"]:
            execute(prepared.ledger, "VACUUM predictions")
        say(f"purge: {found}")
    return found


def _make_year_old_ledger(url: str) -> None:
    """Replace the ledger by an empty one that has had partitions for a year."""
    with contextlib.closing(Ledger(url)) as ledger:
        execute(ledger, "DROP SCHEMA public CASCADE")
        execute(ledger, "CREATE SCHEMA public")
        with patch("time.time", return_value=time.time() - (_DAYS + 1) * _DAY_SECONDS):
            upgrade(ledger)
        upgrade(ledger)


def _fill(prepared: PreparedLedger, rows: int) -> list[str]:
    """Make finished jobs, evenly over the days, and return their ids, oldest first."""
    number = rows // _JOB_IMAGES
    say(f"writing {rows:,} rows")
    ids = []
    for place in range(number):
        days_ago = _DAYS - place * _DAYS / number
        with prepared.ledger.transaction() as connection:
            job_id = make_large_job(
                connection,
                prepared.model_id,
                _JOB_IMAGES,
                chunk_images=CHUNK_IMAGES,
                days_ago=days_ago,
                job_id=_id(days_ago),
            )
        ids.append(job_id)
    execute(prepared.ledger, "VACUUM ANALYZE")  # autovacuum would do it by and by
    prepared.settle()
    return ids


def _id(days_ago: float) -> str:
    """Return a new id as if it were made so many days ago."""
    then = time.time_ns() - int(days_ago * _DAY_SECONDS * 1e9)
    with patch("jobs.ids.time.time_ns", return_value=then):
        return new_id()


def _pages(ledger: Ledger, jobs: list[str], repeats: int) -> dict[str, float]:
    """Return the milliseconds of pages of different jobs."""
    return milliseconds([seconds_of(partial(_read_page, ledger, jobs)) for _ in range(repeats)])


def _read_page(ledger: Ledger, jobs: list[str]) -> None:
    begin = random.randrange(_JOB_IMAGES - PAGE)
    with ledger.reading() as connection:
        page = page_of_predictions(connection, random.choice(jobs), Filter(), after=begin - 1, limit=PAGE)
    assert [each.index for each in page] == list(range(begin, begin + PAGE))


def _rows_of(ledger: Ledger, jobs: list[str]) -> int:
    counted = sa.text("SELECT count(*) FROM predictions WHERE job_id = ANY(:jobs)")
    with ledger.reading() as connection:
        return connection.scalar(counted, {"jobs": jobs}) or 0


def _number_of_partitions(ledger: Ledger) -> dict[str, int]:
    with ledger.reading() as connection:
        found = partitions(connection)
    return {"all": len(found), "with_rows": sum(each.can_be_emptied for each in found)}


if __name__ == "__main__":
    run(main)
