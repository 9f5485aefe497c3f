"""`python -m benchmarks.http_status`: time the status of a batch over HTTP, idle and beside a large job.

Requests are sent at a fixed rate, and each is timed from the moment at which it was due: a request that waits
behind a slow one counts in full.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from benchmarks.harness.images import ALL_DIGITS
from benchmarks.harness.producer import LargeJob
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, write_result
from benchmarks.harness.served import ServedPipeline
from benchmarks.harness.setup import PROCESSES, Json, WorkDir, prepare, run
from labelmill.console.terminal import say

#: Clients that send the requests: more than are ever answered at the same time.
_CLIENTS: Final = 16


def main(
    requests: Annotated[int, typer.Option(min=2, help="Requests of each kind.")] = 10_000,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second.")] = 200.0,
    images: Annotated[
        int, typer.Option(min=1, max=ALL_DIGITS, help="Images of the large job, begun again at its end.")
    ] = ALL_DIGITS,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time the status of a batch over HTTP, alone and beside a large job."""
    with prepare(work_dir, images=images) as setup, ServedPipeline(setup) as pipeline:
        say("warming up")
        pipeline.warm_up(setup.folder)
        setup.settle()
        idle = _status_times(pipeline, requests, rate)
        say_milliseconds("status, idle", idle)
        with LargeJob(pipeline.client, setup.folder, images) as large_job, _restarting(large_job):
            busy = _status_times(pipeline, requests, rate)
        say_milliseconds("status, beside a large job", busy)
    facts = {"requests": requests, "rate": rate, "images": images, "processes": PROCESSES}
    measured = {"status_idle": idle, "status_busy": busy, "bulk_jobs": large_job.jobs}
    write_result("http-status", facts | measured | {"database": setup.databases.facts}, json)


@contextmanager
def _restarting(large_job: LargeJob) -> Iterator[None]:
    """Begin the next large job whenever one has ended."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            large_job.under_way()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _status_times(pipeline: ServedPipeline, requests: int, rate: float) -> dict[str, float]:
    """Return the milliseconds of requests for the newest batch, at so many per second."""
    batch_id = pipeline.client.jobs(limit=1)[0].id
    taken: list[float] = []
    numbers = iter(range(requests))
    lock = threading.Lock()
    began = time.perf_counter()

    def ask() -> None:
        with pipeline.connect() as api:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                due = began + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                api.get(f"/batches/{batch_id}")
                taken.append(time.perf_counter() - due)

    with ThreadPoolExecutor(_CLIENTS) as threads:
        for each in [threads.submit(ask) for _ in range(_CLIENTS)]:
            each.result()
    return milliseconds(taken)


if __name__ == "__main__":
    run(main)
