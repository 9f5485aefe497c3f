"""`python -m benchmarks.http_api latency`: time reads beside a large job, and in a job of ten million images.

Requests are sent at a fixed rate, and each is timed from the moment at which it was due: a request that waits
behind a slow one counts in full.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.bulk import Bulk
from benchmarks.databases import Work, databases
from benchmarks.http_api.served import Api, Served, in_threads
from benchmarks.images import ALL_DIGITS, list_images
from benchmarks.large_job import make_large_job
from benchmarks.pipeline import Pipeline
from benchmarks.report import milliseconds, write_measured
from benchmarks.setup import (
    PROCESSES,
    RESULTS,
    Json,
    Processes,
    WorkDir,
    prepare,
    settings_in,
    settle,
    short_folder,
)
from jobs.errors import LabelmillError
from labelmill.client import Client
from labelmill.console.terminal import report_errors, say

_PAGE: Final = 100

#: Where a page begins, as a share of the rows.
_DEPTHS: Final = (0.0, 0.1, 0.5, 0.999)

#: Clients that send the requests: more than are ever answered at the same time.
_CLIENTS: Final = 16

#: Batches whose status is asked for in turn: only requests for one batch share readings of the ledger.
_BATCHES: Final = 50


@report_errors
def main(
    requests: Annotated[int, typer.Option(min=2, help="Requests beside the large job.")] = 10_000,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second.")] = 200.0,
    images: Annotated[
        int, typer.Option(min=1, max=ALL_DIGITS, help="Images of the large job, begun again at its end.")
    ] = ALL_DIGITS,
    rows: Annotated[int, typer.Option(min=1_000, help="Images of the finished job.")] = 10_000_000,
    pages: Annotated[int, typer.Option(min=2, help="How often each page is asked for.")] = 200,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time the status of a batch beside a large job, and pages of results of a very large one."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=images)
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with Pipeline(settings, model) as pipeline, Served(settings, pipeline.client.ledger) as served:
            say("warming up")
            pipeline.warm_up(folder)
            settle(both.settle)
            idle = _status_times(served, [_newest(pipeline.client)], requests, rate)
            _tell("status, idle", idle)
            with Bulk(pipeline.client, folder, images) as bulk, _restarting(bulk):
                busy = _status_times(served, [_newest(pipeline.client)], requests, rate)
            _tell("status, beside a large job", busy)
            pipeline.wait_until_idle()
            batch_ids = _make_batches(served, folder)
            with Bulk(pipeline.client, folder, images) as more_bulk, _restarting(more_bulk):
                in_turn = _status_times(served, batch_ids, requests, rate)
            _tell(f"status of {_BATCHES} batches in turn, beside a large job", in_turn)
            pipeline.wait_until_idle()
            found = _page_times(served, pipeline.client, rows, pages)
            for name, figures in found.items():
                _tell(name, figures)
    facts = {"requests": requests, "rate": rate, "images": images, "rows": rows, "processes": processes}
    measured = {
        "status_idle": idle,
        "status_busy": busy,
        "status_busy_in_turn": in_turn,
        "bulk_jobs": bulk.jobs,
        "pages": found,
        "database": both.facts,
    }
    say(f"written to {write_measured('http-latency', facts | measured, json, load_average)}")


def _tell(name: str, figures: dict[str, float]) -> None:
    say(f"{name}: median {figures['median']:.1f} ms, 99th percentile {figures['p99']:.1f} ms")


@contextmanager
def _restarting(bulk: Bulk) -> Iterator[None]:
    """Begin the next large job whenever one has ended."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            bulk.under_way()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


def _newest(client: Client) -> str:
    return client.jobs(limit=1)[0].id


def _make_batches(served: Served, folder: Path) -> list[str]:
    """Let batches of one image be classified, and return their ids."""
    image = Path(list_images(folder)[0])
    with served.connect() as api, image.open("rb") as file:
        file_id = api.upload(image.name, file, image.stat().st_size)
        ids = [str(api.post("/batches", {"input_file_id": file_id})["id"]) for _ in range(_BATCHES)]
        for batch_id in ids:
            api.wait(batch_id, "completed")
    return ids


def _status_times(served: Served, batch_ids: list[str], requests: int, rate: float) -> dict[str, float]:
    """Return the milliseconds of requests for the batches in turn, at so many per second."""
    taken: list[float] = []
    numbers = iter(range(requests))
    lock = threading.Lock()
    began = time.perf_counter()

    def ask() -> None:
        with served.connect() as api:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                due = began + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                api.get(f"/batches/{batch_ids[number % len(batch_ids)]}")
                taken.append(time.perf_counter() - due)

    in_threads(_CLIENTS, ask)
    return milliseconds(taken)


def _page_times(served: Served, client: Client, rows: int, pages: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of pages at several depths of a very large job."""
    say(f"writing {rows:,} rows")
    with client.ledger.transaction() as connection:
        job_id = make_large_job(
            connection, client.models()[0].id, rows, chunk_images=client.settings.chunk_images
        )
    begins = [min(int(rows * share), rows - _PAGE) for share in _DEPTHS]
    taken: dict[int, list[float]] = {begin: [] for begin in begins}
    with served.connect() as api:
        for _ in range(pages):
            for begin in begins:  # in turns, so that none has a quieter machine than another
                before = time.perf_counter()
                _read_page(api, job_id, begin)
                taken[begin].append(time.perf_counter() - before)
    return {f"page at {begin:,}": milliseconds(seconds) for begin, seconds in taken.items()}


def _read_page(api: Api, job_id: str, begin: int) -> None:
    page = api.get(f"/batches/{job_id}/results?after={begin - 1}&limit={_PAGE}")
    if [one["index"] for one in page] != list(range(begin, begin + _PAGE)):
        raise LabelmillError(f"The page at {begin:,} does not hold what it should.")
