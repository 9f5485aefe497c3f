"""`python -m benchmarks.retention`: purge a month of a large table of predictions, and read the rest.

PostgreSQL only, which makes the rows itself. The purge is that of `labelmill purge --jobs`.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Annotated, Final
from unittest.mock import patch

import typer

from benchmarks.harness.made_jobs import PAGE, check_page, make_finished_job, vacuum
from benchmarks.harness.model import make_champion
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, seconds_of, write_result
from benchmarks.harness.setup import Json, Setup, WorkDir, prepare, run
from jobs.ids import new_id
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.queries import page_of_predictions
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.client.purging import Purge
from labelmill.console.terminal import say

#: The rows are of jobs of this many images, which finished within this many days. The first month is purged.
_JOB_IMAGES: Final = 1_000_000
_DAYS: Final = 365
_MONTH_DAYS: Final = 30


def main(
    rows: Annotated[int, typer.Option(min=2 * _JOB_IMAGES, help="Predictions.")] = 100_000_000,
    repeats: Annotated[int, typer.Option(min=10, help="How many pages are read.")] = 500,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure how long a purge takes, and a page before and after it."""
    # A ledger that has had partitions for a year.
    with prepare(work_dir, images=1, days_ago=_DAYS + 1) as setup, Client(setup.settings) as client:
        jobs = _fill(setup, client, rows // _JOB_IMAGES)
        page_before = _pages(client, jobs, repeats)
        say_milliseconds("a page before", page_before)
        purge = Purge(client.ledger, Store(setup.settings.store), dry_run=False, on_progress=lambda _: None)
        seconds = seconds_of(partial(purge.whole_jobs, days=_DAYS - _MONTH_DAYS))
        say(f"{purge.purged.predictions:,} rows purged in {seconds:.2f} s")
        page_after = _pages(client, jobs[purge.purged.jobs :], repeats)
        say_milliseconds("a page after", page_after)
    measured = {
        "rows": rows,
        "job_images": _JOB_IMAGES,
        "days": _DAYS,
        "page": PAGE,
        "page_before": page_before,
        "month": {"seconds": round(seconds, 3), "rows": purge.purged.predictions},
        "page_after": page_after,
        "database": setup.databases.facts,
    }
    write_result("retention", measured, json)


def _fill(setup: Setup, client: Client, jobs: int) -> list[str]:
    """Make finished jobs, evenly over the days, and return their ids, oldest first."""
    model_id = make_champion(setup.model, client.ledger, setup.settings).id
    say(f"writing {jobs * _JOB_IMAGES:,} rows")
    ids = []
    for place in range(jobs):
        days_ago = _DAYS - place * _DAYS / jobs
        then = time.time_ns() - int(days_ago * 86_400e9)
        with patch("jobs.ids.time.time_ns", return_value=then):
            ids.append(new_id())
        make_finished_job(client, model_id, _JOB_IMAGES, days_ago=days_ago, job_id=ids[-1])
    vacuum(client)
    setup.settle()
    return ids


def _pages(client: Client, jobs: list[str], repeats: int) -> dict[str, float]:
    """Return the milliseconds of pages of different jobs."""
    return milliseconds([seconds_of(partial(_read_page, client, jobs)) for _ in range(repeats)])


def _read_page(client: Client, jobs: list[str]) -> None:
    begin = random.randrange(_JOB_IMAGES - PAGE)
    with client.ledger.reading() as connection:
        page = page_of_predictions(connection, random.choice(jobs), Filter(), after=begin - 1, limit=PAGE)
    check_page([one.index for one in page], begin)


if __name__ == "__main__":
    run(main)
