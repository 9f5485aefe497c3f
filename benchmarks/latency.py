"""`python -m benchmarks.latency`: how long one image takes, on an idle stack and beside a very large job.

From the call of `Client.submit` to the moment at which another connection sees the image's row. That one asks
every half a millisecond, by one statement of the driver's own: a clock in the database would leave out the
COMMIT, and the library's own question would take more from the workers.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.asking import ROW_IS_THERE, Ask, asking, wait_for_row
from benchmarks.bulk import Bulk
from benchmarks.databases import Work, databases
from benchmarks.images import ALL_DIGITS, list_images
from benchmarks.model import TrainedModel
from benchmarks.pipeline import JOB_SECONDS, Pipeline
from benchmarks.report import milliseconds, write_measured
from benchmarks.surroundings import (
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
from labelmill.client import Client
from labelmill.console import say, tells_errors

#: Between one job and the next, at the most: evenly spread from nothing, so that none keeps step with what
#: others do by the clock.
PAUSE_SECONDS: Final = 0.2


@tells_errors
def main(
    works: Works = None,
    jobs: Annotated[int, typer.Option(min=2, help="Jobs of one image, idle and busy each.")] = 300,
    bulk_images: Annotated[int, typer.Option(min=1, help="Images of the large job beside them.")] = 1_000_000,
    images: Annotated[int, typer.Option(min=1, max=ALL_DIGITS, help="Files that both take.")] = ALL_DIGITS,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time jobs of one image, one after the other, first alone, then beside a large job."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=images)
    measured = {}
    for work in works or list(Work):
        measured[str(work)] = found = _measure(work, model, folder, jobs, bulk_images, processes)
        for name in ("idle", "busy"):
            figures = found[name]
            say(f"{work}, {name}: median {figures['median']:.1f} ms, 99th percentile {figures['p99']:.1f} ms")
        say(f"{work}: busy over idle {found['ratio']:.2f}")
    facts = {"jobs": jobs, "bulk_images": bulk_images, "processes": processes}
    say(f"written to {write_measured('latency', facts | measured, json, load_average)}")


def _measure(
    work: Work, model: TrainedModel, folder: Path, jobs: int, bulk_images: int, processes: int
) -> dict[str, Any]:
    with short_folder() as home, databases(work, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with Pipeline(settings, model) as pipeline, asking(pipeline.client.ledger, ROW_IS_THERE) as ask:
            say(f"{work}: warming up")
            pipeline.warm_up(folder)
            settle(both.settle)
            say(f"{work}: {jobs} jobs of one image, alone")
            paths = cycle(list_images(folder))
            idle = _timed(pipeline.client, ask, paths, jobs)
            say(f"{work}: {jobs} jobs of one image, beside a job of {bulk_images:,}")
            with Bulk(pipeline.client, folder, bulk_images) as bulk:
                busy = _timed(pipeline.client, ask, paths, jobs, under_way=bulk.under_way)
    found = {"idle": _figures(idle), "busy": _figures(busy)}
    return found | {
        "ratio": round(found["busy"]["median"] / found["idle"]["median"], 3),
        "bulk_jobs": bulk.jobs,
        "database": both.facts,
    }


def _figures(taken: list[tuple[float, float]]) -> dict[str, Any]:
    """To the row, and of that until the call came back, in milliseconds."""
    return milliseconds([total for total, _ in taken]) | {"submit": milliseconds([part for _, part in taken])}


def _timed(
    client: Client,
    ask: Ask,
    paths: Iterator[str],
    jobs: int,
    *,
    under_way: Callable[[], bool] = lambda: True,
) -> list[tuple[float, float]]:
    """Seconds to the row, and of them until the call came back, of each job. One counts only if what is to be
    `under_way` was, before it and after it. Raises RuntimeError where a row does not come.
    """
    taken: list[tuple[float, float]] = []
    chance = random.Random(jobs)
    while len(taken) < jobs:
        time.sleep(chance.uniform(0, PAUSE_SECONDS))
        before = under_way()
        began = time.perf_counter()
        job_id = client.submit(next(paths))
        submitted = time.perf_counter()
        wait_for_row(ask, job_id, seconds=JOB_SECONDS)
        ended = time.perf_counter()
        if before and under_way():
            taken.append((ended - began, submitted - began))
    return taken


if __name__ == "__main__":
    run(main)
