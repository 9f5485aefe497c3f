"""`python -m benchmarks.latency`: time one image, idle, beside a large job and a slow model.

The time from the call of `Client.submit` until another connection sees the image's row. That connection asks
every half a millisecond, by one statement of the driver: a clock in the database would leave out the COMMIT,
and the library's own query would take more time from the workers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.images import ALL_DIGITS, list_images
from benchmarks.harness.pipeline import JOB_SECONDS, Pipeline, Probe, open_probe
from benchmarks.harness.producer import LargeJob
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, write_result
from benchmarks.harness.setup import PROCESSES, Json, WorkDir, prepare, run
from benchmarks.slow_model import build_slow_model, register_slow_model
from labelmill.client import Client
from labelmill.console.terminal import say
from producer.sources import Sources
from worker.predicting.context import FIRST_CLAIM_IMAGES

#: At most so long from one job to the next, evenly spread from 0, so that no job keeps step with a timer.
PAUSE_SECONDS: Final = 0.2

_ROW_IS_THERE: Final = "SELECT 1 FROM predictions WHERE job_id = ?"

#: Seconds between two queries for a row. A query takes about 0.05 ms.
_PROBE_SECONDS: Final = 0.0005


def main(
    jobs: Annotated[int, typer.Option(min=2, help="Jobs of one image, of each kind.")] = 300,
    bulk_images: Annotated[int, typer.Option(min=1, help="Images of the large job beside them.")] = 1_000_000,
    slow_images: Annotated[
        int, typer.Option(min=2, help="Images of the slow model's job beside them.")
    ] = 20_000,
    slow_ms: Annotated[float, typer.Option(min=0.1, help="Milliseconds per image of the slow model.")] = 10.0,
    images: Annotated[int, typer.Option(min=1, max=ALL_DIGITS, help="Files that both take.")] = ALL_DIGITS,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time jobs of one image, one after the other: alone, beside a large job, beside a slow model's job."""
    measured: dict[str, Any] = {}

    def note(kind: str, taken: list[tuple[float, float]]) -> None:
        """Note milliseconds to the row, and of these, milliseconds until `submit` returned."""
        measured[kind] = milliseconds([total for total, _ in taken])
        say_milliseconds(kind, measured[kind])
        measured[kind]["submit"] = milliseconds([part for _, part in taken])

    with (
        prepare(work_dir, images=images) as setup,
        Pipeline(setup) as pipeline,
        open_probe(pipeline.client.ledger, _ROW_IS_THERE) as probe,
    ):
        client, folder = pipeline.client, setup.folder
        say("warming up")
        slow = build_slow_model(slow_ms)
        pipeline.warm_up(folder)
        setup.settle()
        say(f"{jobs} jobs of one image, alone")
        paths = cycle(list_images(folder))
        note("idle", _timed(client, probe, paths, jobs))
        say(f"{jobs} jobs of one image, beside a job of {bulk_images:,}")
        with LargeJob(client, folder, bulk_images) as large_job:
            note("busy", _timed(client, probe, paths, jobs, under_way=large_job.under_way))
        pipeline.wait_until_idle()
        slow_id = register_slow_model(slow, client.ledger, setup.settings)
        _warm_up_slow(client, folder, slow_id)
        say(f"{jobs} jobs of one image, beside a model of {slow.image_ms:.1f} ms per image")
        with LargeJob(client, folder, slow_images, model=slow_id) as slow_job:
            note("slow", _timed(client, probe, paths, jobs, under_way=slow_job.under_way))
    facts = {
        "jobs": jobs,
        "bulk_images": bulk_images,
        "slow_images": slow_images,
        "slow_ms": slow_ms,
        "processes": PROCESSES,
        "bulk_jobs": large_job.jobs,
        "slow_bulk_jobs": slow_job.jobs,
        "slow_model_image_ms": round(slow.image_ms, 2),
        "database": setup.databases.facts,
    }
    write_result("latency", facts | measured, json)


def _warm_up_slow(client: Client, folder: Path, model_id: str) -> None:
    """Let every process load the model and measure its speed: none has a second claim before all have one."""
    images = 2 * FIRST_CLAIM_IMAGES * PROCESSES
    job_id = client.submission(islice(Sources([str(folder)]), images), model=model_id).job_id
    client.wait(job_id, timeout=JOB_SECONDS)


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
        _wait_for_row(probe, job_id)
        ended = time.perf_counter()
        if before and under_way():
            taken.append((ended - began, submitted - began))
    return taken


def _wait_for_row(probe: Probe, job_id: str) -> None:
    """Wait until the job of one image has its row. Raises RuntimeError if it does not come."""
    deadline = time.perf_counter() + JOB_SECONDS
    while probe(job_id) is None:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"the image of job {job_id} has no row after {JOB_SECONDS:g} seconds")
        time.sleep(_PROBE_SECONDS)


if __name__ == "__main__":
    run(main)
