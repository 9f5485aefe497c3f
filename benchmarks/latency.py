"""`python -m benchmarks.latency`: time one image, idle, beside a large job and a slow model.

The time from the call of `Client.submit` until another connection sees the image's row. That connection asks
every half a millisecond, by one statement of the driver: a clock in the database would leave out the COMMIT,
and the library's own query would take more time from the workers.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from benchmarks.bulk import Bulk
from benchmarks.databases import Work, databases
from benchmarks.images import ALL_DIGITS, list_images
from benchmarks.model import TrainedModel
from benchmarks.pipeline import JOB_SECONDS, Pipeline
from benchmarks.probes import ROW_IS_THERE, Probe, open_probe, wait_for_row
from benchmarks.report import milliseconds, write_measured
from benchmarks.setup import (
    PROCESSES,
    RESULTS,
    Json,
    Processes,
    WorkDir,
    Works,
    prepare,
    run,
    settings_in,
    settle,
    short_folder,
)
from benchmarks.slow_model import build_slow_model, register_slow_model
from labelmill.client import Client
from labelmill.console.terminal import report_errors, say
from producer.sources import Sources
from worker.predicting.context import FIRST_CLAIM_IMAGES

#: At most so long from one job to the next, evenly spread from 0, so that no job keeps step with a timer.
PAUSE_SECONDS: Final = 0.2

#: What is measured, in this order.
_KINDS: Final = ("idle", "busy", "slow")


class _Sizes(NamedTuple):
    """How much is measured."""

    jobs: int
    bulk_images: int
    slow_images: int
    slow_ms: float


@report_errors
def main(
    works: Works = None,
    jobs: Annotated[int, typer.Option(min=2, help="Jobs of one image, of each kind.")] = 300,
    bulk_images: Annotated[int, typer.Option(min=1, help="Images of the large job beside them.")] = 1_000_000,
    slow_images: Annotated[
        int, typer.Option(min=2, help="Images of the slow model's job beside them.")
    ] = 20_000,
    slow_ms: Annotated[float, typer.Option(min=0.1, help="Milliseconds per image of the slow model.")] = 10.0,
    images: Annotated[int, typer.Option(min=1, max=ALL_DIGITS, help="Files that both take.")] = ALL_DIGITS,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time jobs of one image, one after the other: alone, beside a large job, beside a slow model's job."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=images)
    measured = {}
    for work in works or list(Work):
        sizes = _Sizes(jobs, bulk_images, slow_images, slow_ms)
        measured[str(work)] = found = _measure(work, model, folder, sizes, processes)
        for name in _KINDS:
            figures = found[name]
            say(f"{work}, {name}: median {figures['median']:.1f} ms, 99th percentile {figures['p99']:.1f} ms")
    facts = {
        "jobs": jobs,
        "bulk_images": bulk_images,
        "slow_images": slow_images,
        "slow_ms": slow_ms,
        "processes": processes,
    }
    say(f"written to {write_measured('latency', facts | measured, json, load_average)}")


def _measure(work: Work, model: TrainedModel, folder: Path, sizes: _Sizes, processes: int) -> dict[str, Any]:
    jobs = sizes.jobs
    with short_folder() as home, databases(work, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with Pipeline(settings, model) as pipeline, open_probe(pipeline.client.ledger, ROW_IS_THERE) as probe:
            say(f"{work}: warming up")
            slow = build_slow_model(sizes.slow_ms, home)
            pipeline.warm_up(folder)
            settle(both.settle)
            say(f"{work}: {jobs} jobs of one image, alone")
            paths = cycle(list_images(folder))
            idle = _timed(pipeline.client, probe, paths, jobs)
            say(f"{work}: {jobs} jobs of one image, beside a job of {sizes.bulk_images:,}")
            with Bulk(pipeline.client, folder, sizes.bulk_images) as bulk:
                busy = _timed(pipeline.client, probe, paths, jobs, under_way=bulk.under_way)
            pipeline.wait_until_idle()
            slow_id = register_slow_model(slow, pipeline.client.ledger, settings)
            _warm_up_slow(pipeline.client, folder, slow_id, processes)
            say(f"{work}: {jobs} jobs of one image, beside a model of {slow.image_ms:.1f} ms per image")
            with Bulk(pipeline.client, folder, sizes.slow_images, model=slow_id) as slow_bulk:
                beside_slow = _timed(pipeline.client, probe, paths, jobs, under_way=slow_bulk.under_way)
    return {
        **dict(zip(_KINDS, map(_figures, (idle, busy, beside_slow)), strict=True)),
        "bulk_jobs": bulk.jobs,
        "slow_bulk_jobs": slow_bulk.jobs,
        "slow_model_image_ms": round(slow.image_ms, 2),
        "database": both.facts,
    }


def _warm_up_slow(client: Client, folder: Path, model_id: str, processes: int) -> None:
    """Let every process load the model and measure its speed: none has a second claim before all have one."""
    images = 2 * FIRST_CLAIM_IMAGES * processes
    job_id = client.submission(islice(Sources([str(folder)]), images), model=model_id).job_id
    client.wait(job_id, timeout=JOB_SECONDS)


def _figures(taken: list[tuple[float, float]]) -> dict[str, Any]:
    """Return milliseconds to the row, and of these, milliseconds until `submit` returned."""
    return milliseconds([total for total, _ in taken]) | {"submit": milliseconds([part for _, part in taken])}


def _timed(
    client: Client,
    probe: Probe,
    paths: Iterator[str],
    jobs: int,
    *,
    under_way: Callable[[], bool] = lambda: True,
) -> list[tuple[float, float]]:
    """Return each job's seconds to the row, and of these, seconds until `submit` returned.

    A job counts only if `under_way` is true before and after it. Raises RuntimeError if a row does not come.
    """
    taken: list[tuple[float, float]] = []
    chance = random.Random(jobs)
    while len(taken) < jobs:
        time.sleep(chance.uniform(0, PAUSE_SECONDS))
        before = under_way()
        began = time.perf_counter()
        job_id = client.submit(next(paths))
        submitted = time.perf_counter()
        wait_for_row(probe, job_id, seconds=JOB_SECONDS)
        ended = time.perf_counter()
        if before and under_way():
            taken.append((ended - began, submitted - began))
    return taken


if __name__ == "__main__":
    run(main)
