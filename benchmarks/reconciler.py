"""`python -m benchmarks.reconciler`: time the reconciler with many waiting chunks, on PostgreSQL."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from benchmarks.harness.made_jobs import make_waiting_job, vacuum
from benchmarks.harness.pipeline import Pipeline
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, seconds_of, write_result
from benchmarks.harness.setup import Json, WorkDir, prepare, run
from jobs.queue import MAX_WAITING, Publisher, make_app
from labelmill.console.terminal import say
from worker.reconciler import Reconciler

#: Jobs that share what waits.
_JOBS: Final = 10


def main(
    pending: Annotated[int, typer.Option(min=10_000, help="Chunks that wait.")] = 500_000,
    repeats: Annotated[int, typer.Option(min=2, help="How often it is timed.")] = 20,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time a tick of the reconciler, with as many messages waiting as it sends at most."""
    with prepare(work_dir, images=1) as setup, Pipeline(setup, worker=False) as pipeline:
        client, publisher = pipeline.client, Publisher(make_app(setup.settings))
        say(f"writing {pending:,} chunks")
        for _ in range(_JOBS):
            make_waiting_job(client, client.model().id, pending // _JOBS)
        vacuum(client)
        setup.settle()
        reconciler = Reconciler(client.ledger, publisher, holder="benchmark")
        sent = reconciler.tick()
        assert sent == MAX_WAITING
        tick = milliseconds([seconds_of(reconciler.tick) for _ in range(repeats)])
        publisher.close()
    say_milliseconds("a tick", tick)
    facts = {"pending": pending, "repeats": repeats, "database": setup.databases.facts}
    write_result("reconciler", facts | {"tick_ms": tick}, json)


if __name__ == "__main__":
    run(main)
