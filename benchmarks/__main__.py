"""`make bench`: images per second from files to committed rows, the pipeline and a bare loop in turns.

The ratio of each pair is the pipeline's efficiency. docs/explanation/performance.md explains the figures.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.efficiency import measure
from benchmarks.harness.databases import Work
from benchmarks.harness.images import ALL_IMAGES, MOST_IMAGES, Pictures
from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.setup import PROCESSES, WorkDir, prepare, run
from benchmarks.timings import PROFILE_IMAGES, print_timings
from labelmill.console.terminal import say

ROUNDS: Final = 5


class Choice(StrEnum):
    """Which works are measured."""

    POSTGRESQL = Work.POSTGRESQL.value
    SQLITE = Work.SQLITE.value
    ALL = "all"


def main(
    work: Annotated[Choice, typer.Option(help="Which database the rows go to.")] = Choice.ALL,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs count; one more comes first.")] = ROUNDS,
    pictures: Annotated[
        Pictures,
        typer.Option(help="What is on them: MNIST's digits, PNG; or 640x480 in colour, JPEG, to PostgreSQL."),
    ] = Pictures.DIGITS,
    images: Annotated[
        int | None, typer.Option(min=1, help="How many images. Default: 70,000 digits or 5,000 photographs.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, on either side.")] = PROCESSES,
    work_dir: WorkDir = None,
    json: Annotated[
        Path | None,
        typer.Option(help="The folder for <work>.json. Default: benchmarks/results, for full runs only."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure the stages of one worker process instead.")
    ] = False,
) -> None:
    """Measure images per second from files on disk to committed rows, beside a bare loop."""
    if images is None:
        images = min(ALL_IMAGES[pictures], PROFILE_IMAGES) if profile else ALL_IMAGES[pictures]
    if images > MOST_IMAGES[pictures]:
        raise typer.BadParameter(f"there are {MOST_IMAGES[pictures]:,} {pictures}, not {images:,}.")
    if pictures == Pictures.PHOTOGRAPHS:
        if work == Choice.SQLITE:
            raise typer.BadParameter("photographs are measured on PostgreSQL only.")
        work = Choice.POSTGRESQL
    for one in Work if work == Choice.ALL else [Work(work.value)]:
        workers = 1 if profile else processes
        with prepare(work_dir, images=images, pictures=pictures, work=one, processes=workers) as setup:
            if profile:
                say(f"profiling on {one}")
                print_timings(setup, images)
                continue
            result = measure(setup, work=one, pictures=pictures, images=images, rounds=rounds)
        result.print()
        if json is None and (images < ALL_IMAGES[pictures] or rounds < ROUNDS):
            say(f"not written to a file: pass --json, or take all images and {ROUNDS} rounds")
        else:
            write_result(result.name, result.to_json(), json or RESULTS)


if __name__ == "__main__":
    run(main)
