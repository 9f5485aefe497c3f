"""`python -m benchmarks.http_api small`: requests of one image from many clients at the same time.

Each waits for its label. The command's side submits the same images one after the other, as jobs of one
image, without waiting. The clock stops with the last label.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import typer

from benchmarks.check import WrongRows
from benchmarks.databases import Work, databases
from benchmarks.http_api.served import Served, in_threads
from benchmarks.images import list_images
from benchmarks.pipeline import JOB_SECONDS, Pipeline
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
from labelmill.client import Client
from labelmill.console.terminal import report_errors, say

#: Number of files; each request takes one of them.
_IMAGES = 10_000


@report_errors
def main(
    requests: Annotated[int, typer.Option(min=2, help="Requests of one image.")] = 10_000,
    clients: Annotated[int, typer.Option(min=1, help="Clients that send them.")] = 32,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Send requests of one image from many clients, and submit the same images with the library."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=min(requests, _IMAGES))
    paths = list(islice(cycle(list_images(folder)), requests))
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with Pipeline(settings, model) as pipeline, Served(settings, pipeline.client.ledger) as served:
            say("warming up")
            pipeline.warm_up(folder)
            settle(both.settle)
            found = _send_all(served, paths, clients)
            say(f"over HTTP: {found['requests_per_second']:,.0f} requests/s, none lost")
            settle(both.settle)
            rate = _submit_all(pipeline.client, paths)
            say(f"the command: {rate:,.0f} jobs/s")
    facts = {"requests": requests, "clients": clients, "processes": processes, "database": both.facts}
    measured = found | {
        "command_jobs_per_second": round(rate, 1),
        "ratio": round(found["requests_per_second"] / rate, 3),
    }
    say(f"written to {write_measured('http-small', facts | measured, json, load_average)}")


def _send_all(served: Served, paths: Sequence[str], clients: int) -> dict[str, Any]:
    """Send an image per request; return the rate and the times. Raises WrongRows if a label is missing."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for path in paths:
        waiting.put(path)
    taken: list[float] = []
    batches: list[str] = []

    def send() -> None:
        with served.connect() as api, suppress(Empty):
            while True:
                path = waiting.get_nowait()
                began = time.perf_counter()
                found = api.classify(Path(path).read_bytes())
                taken.append(time.perf_counter() - began)
                [result] = found["results"]
                if result["label"] is None:
                    raise WrongRows(f"{path} has no label: {result['error']}")
                batches.append(found["id"])

    began = time.perf_counter()
    in_threads(clients, send)
    seconds = time.perf_counter() - began
    if len(set(batches)) != len(paths):
        raise WrongRows(f"{len(set(batches)):,} batches for {len(paths):,} requests")
    return {"requests_per_second": round(len(paths) / seconds, 1), "milliseconds": milliseconds(taken)}


def _submit_all(client: Client, paths: Sequence[str]) -> float:
    """Submit a job for each image; return the jobs per second until the last label."""
    began = time.perf_counter()
    jobs = [client.submit(path) for path in paths]
    for job_id in reversed(jobs):
        client.wait(job_id, timeout=JOB_SECONDS)
    return len(paths) / (time.perf_counter() - began)
