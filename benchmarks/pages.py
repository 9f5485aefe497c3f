"""`python -m benchmarks.pages`: time the pages of a large ledger, and count what watching a job costs it.

PostgreSQL makes the rows itself: a job of ten million images, and a hundred thousand small ones. Times are
those of the server, over HTTP on a connection that stays open.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated, Final

import httpx
import sqlalchemy as sa
import typer

from benchmarks.harness.made_jobs import make_finished_job, make_small_jobs, make_waiting_job, vacuum
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, seconds_of, write_result
from benchmarks.harness.served import ServedPipeline
from benchmarks.harness.setup import Json, WorkDir, prepare, run
from jobs.ids import new_id
from jobs.ledger.api.keys import Role, create_key
from labelmill.client import Client
from labelmill.console.terminal import say

#: Chunks of the job that is watched: none of them is claimed.
_WAITING_CHUNKS: Final = 1_000

#: Seconds until the requests before have no effect on the counts, and for which transactions are counted.
_SETTLE_SECONDS: Final = 10.0
_WATCH_SECONDS: Final = 30.0

#: The filters of the gallery. The last two find nothing, so each page looks as far as its time allows.
_FILTERS: Final = (
    "",
    "?order=unsure",
    "?label=7&below=0.6",
    "?mistakes=true",
    "?name=scans/3/*",
    "?error=corrupt",
    "?name=nothing*",
)


def main(
    rows: Annotated[int, typer.Option(min=1_000, help="Images of the large job.")] = 10_000_000,
    jobs: Annotated[int, typer.Option(min=100, help="Small jobs.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=2, help="How often each page is asked for.")] = 30,
    watchers: Annotated[int, typer.Option(min=1, help="How many follow one job.")] = 50,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time the pages of a large ledger, and count the transactions per second while many watch one job."""
    with prepare(work_dir, images=1) as setup, ServedPipeline(setup, worker=False) as pipeline:
        client = pipeline.client
        say(f"writing {rows:,} rows and {jobs:,} jobs")
        model = client.model().id
        make_small_jobs(client, model, jobs)
        job_id = make_finished_job(client, model, rows)
        watched = make_waiting_job(client, model, _WAITING_CHUNKS)
        vacuum(client)
        setup.settle()
        with closing(_browser(client, pipeline.url)) as browser:
            found = _time_pages(browser, job_id, repeats)
        for name, figures in found.items():
            say_milliseconds(name, figures)
        rates = _watching_rates(client, pipeline.url, watched, watchers)
        say("transactions per second: {:.1f} without watchers, {:.1f} with {}".format(*rates, watchers))
    facts = {"rows": rows, "jobs": jobs, "repeats": repeats, "database": setup.databases.facts}
    measured = {"milliseconds": found, "watchers": watchers, "transactions_per_second": rates}
    write_result("pages", facts | measured, json)


def _browser(client: Client, url: str) -> httpx.Client:
    """Return an HTTP client that is signed in to the pages."""
    with client.ledger.transaction() as connection:
        _, secret = create_key(connection, f"benchmark {new_id()}", Role.ADMIN)
    browser = httpx.Client(base_url=url, headers={"Accept": "text/html"}, timeout=60)
    browser.post("/sign-in", data={"key": secret})
    return browser


def _time_pages(browser: httpx.Client, job_id: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each page."""
    paths = {
        "home": "/home",
        "jobs": "/jobs",
        "jobs in one state": "/jobs?state=done",
        "the large job": f"/jobs/{job_id}",
        "one image": f"/jobs/{job_id}/images/5",
        "review": "/review",
        "models": "/models",
        "runs": "/runs",
        **{f"images{each}": f"/jobs/{job_id}/images{each}" for each in _FILTERS},
    }
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():  # in turns: the machine may be busier later
            taken[name].append(seconds_of(partial(_fetch, browser, path)))
    return {name: milliseconds(seconds) for name, seconds in taken.items()}


def _fetch(browser: httpx.Client, path: str) -> None:
    browser.get(path).raise_for_status()


def _watching_rates(client: Client, url: str, job_id: str, watchers: int) -> tuple[float, float]:
    """Return the ledger's transactions per second without anybody, and while so many follow a job."""
    time.sleep(_SETTLE_SECONDS)
    before = _transaction_rate(client)
    over = threading.Event()
    with ExitStack() as stack:
        for _ in range(-(-watchers // 10)):  # each key may have twenty streams
            browser = stack.enter_context(closing(_browser(client, url)))
            for _ in range(10):
                thread = threading.Thread(target=_follow, args=(browser, job_id, over))
                thread.start()
                stack.callback(thread.join)
        stack.callback(over.set)
        time.sleep(_SETTLE_SECONDS)
        return before, _transaction_rate(client)


def _follow(browser: httpx.Client, job_id: str, over: threading.Event) -> None:
    with browser.stream("GET", f"/v1/batches/{job_id}/events") as answer:
        for _ in answer.iter_lines():
            if over.is_set():
                return


def _transaction_rate(client: Client) -> float:
    query = sa.text(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    )

    def count() -> int:
        with client.ledger.reading() as connection:
            return int(connection.scalar(query) or 0)

    first, began = count(), time.monotonic()
    time.sleep(_WATCH_SECONDS)
    return round((count() - first) / (time.monotonic() - began), 2)


if __name__ == "__main__":
    run(main)
