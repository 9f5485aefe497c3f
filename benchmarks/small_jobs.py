"""`python -m benchmarks.small_jobs`: jobs of one image per second, against one prediction per message.

All jobs are submitted while the warm workers are stopped (SIGSTOP). The clock starts when they continue, and
stops with the last row. The two sides take turns; the other one is `benchmarks.plain_worker`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer

from benchmarks.databases import Work, databases
from benchmarks.draining import Drained, check_drained, drained, make_mark
from benchmarks.images import list_images
from benchmarks.model import TrainedModel, make_champion
from benchmarks.pipeline import Pipeline
from benchmarks.plain_worker import PlainWorker
from benchmarks.processes import parent_of, standing_still, with_children
from benchmarks.report import write_measured
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
from jobs.ledger import Ledger
from labelmill.client import Client
from labelmill.console.terminal import report_errors, say

#: Number of files; each job takes one of them.
IMAGES: Final = 10_000


@report_errors
def main(
    works: Works = None,
    number: Annotated[int, typer.Option("--jobs", min=1, help="Jobs of one image.")] = 10_000,
    plain: Annotated[int, typer.Option(min=1, help="Jobs of one image for the plain worker.")] = 2_000,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 3,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure jobs of one image per second, against one message and one prediction for each."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=IMAGES)
    paths = list_images(folder)
    measured = {}
    for work in works or list(Work):
        found = _measure(work, model, folder, _some(paths, number), _some(paths, plain), rounds, processes)
        say(f"{work}: {found['ratio']:.1f} times as many jobs per second as one by one")
        measured[str(work)] = found
    facts = {"jobs": number, "plain_jobs": plain, "processes": processes}
    say(f"written to {write_measured('small-jobs', facts | measured, json, load_average)}")


def _some(paths: list[str], number: int) -> list[str]:
    return list(islice(cycle(paths), number))


def _measure(
    work: Work,
    model: TrainedModel,
    folder: Path,
    ours: Sequence[str],
    theirs: Sequence[str],
    rounds: int,
    processes: int,
) -> dict[str, Any]:
    turns = []
    with short_folder() as home, databases(work, home) as both, contextlib.ExitStack() as stack:
        settings = settings_in(home, both.pipeline, processes)
        plain_settings = settings_in(home, both.bare_loop, processes)  # the same broker
        pipeline = stack.enter_context(Pipeline(settings, model))
        plain = PlainWorker(plain_settings)
        make_champion(model, plain.ledger, plain_settings)
        stack.enter_context(plain)
        say(f"{work}: warming up")
        pipeline.warm_up(folder)
        parent = parent_of(pipeline.processes()[0])

        def drain(ledger: Ledger, pids: Sequence[int], send: Callable[[], None]) -> Drained:
            with standing_still(pids, ledger=ledger):
                mark = make_mark()
                send()
                settle(both.settle)
            return drained(ledger, mark, datetime.now(UTC))

        for turn in range(1, rounds + 1):
            say(f"{work}: round {turn} of {rounds}: submitting {len(ours):,} jobs")
            with standing_still(plain.processes(), ledger=plain.ledger):
                # A process that is stopped in the middle of a task exceeds its time limit as soon as it
                # continues, and the start of a fresh process would be measured.
                pipeline.wait_until_idle()
                # Asked each time, because a process may have been replaced.
                workers = with_children(parent)
                ours_drained = drain(pipeline.client.ledger, workers, lambda: _submit(pipeline.client, ours))
            pipeline.wait_until_idle()
            with standing_still(with_children(parent), ledger=pipeline.client.ledger):
                single = drain(plain.ledger, plain.processes(), lambda: plain.submit(theirs))
            check_drained((ours_drained, len(ours)), (single, len(theirs)))
            say(f"{work}: round {turn}: {ours_drained.rate:,.0f} jobs/s, one by one {single.rate:,.0f}")
            turns.append((ours_drained, single))
    return {
        "jobs_per_second": round(median(ours_drained.rate for ours_drained, _ in turns), 1),
        "plain_jobs_per_second": round(median(single.rate for _, single in turns), 1),
        "ratio": round(median(ours_drained.rate / single.rate for ours_drained, single in turns), 2),
        "rounds": [
            {"pipeline": _seconds(ours_drained), "plain": _seconds(single)} for ours_drained, single in turns
        ],
        "database": both.facts,
    }


def _submit(client: Client, paths: Sequence[str]) -> None:
    """Submit a job for each image."""
    for path in paths:
        client.submit(path)


def _seconds(drained: Drained) -> dict[str, float]:
    return {
        "jobs_per_second": round(drained.rate, 1),
        "seconds": round(drained.seconds, 3),
        "seconds_between_rows": round(drained.seconds_between_rows, 3),
    }


if __name__ == "__main__":
    run(main)
