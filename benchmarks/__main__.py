"""`make bench`: images per second from files to committed rows, the pipeline and a bare loop in turns.

The ratio of each pair is the pipeline's efficiency. docs/explanation/performance.md explains the figures.
"""

from __future__ import annotations

import contextlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.bare_loop import BareLoop, plans
from benchmarks.check import check_rows
from benchmarks.databases import Work, databases
from benchmarks.images import ALL_IMAGES, MOST_IMAGES, Pictures, make_images
from benchmarks.model import TrainedModel, make_champion, train_once
from benchmarks.pipeline import Pipeline
from benchmarks.report import Result, Round, print_result, print_timings, write_result
from benchmarks.setup import (
    PROCESSES,
    RESULTS,
    drop_developer_settings,
    drop_payloads,
    kept_folder,
    settings_in,
    settle,
    short_folder,
)
from benchmarks.timings import PROFILE_IMAGES, profile_timings
from jobs.ledger import Ledger
from jobs.settings import Settings
from labelmill.console.terminal import Console, report_errors, say

ROUNDS: Final = 5


class Choice(StrEnum):
    """Which works are measured."""

    POSTGRESQL = Work.POSTGRESQL.value
    SQLITE = Work.SQLITE.value
    ALL = "all"


@report_errors
def main(
    work: Annotated[Choice, typer.Option(help="Which database the rows go to.")] = Choice.ALL,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs count; one more comes first.")] = ROUNDS,
    pictures: Annotated[
        Pictures,
        typer.Option(help="What is on them: MNIST's digits, PNG; or 640x480 in colour, JPEG, to PostgreSQL."),
    ] = Pictures.DIGITS,
    images: Annotated[
        int | None, typer.Option(min=1, help="How many images. Left out: 70,000 digits or 5,000 photographs.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, on either side.")] = PROCESSES,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where images and model are kept between runs.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(help="The folder for <work>.json. Left out: benchmarks/results, for full runs only."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure the stages one by one instead, in one process.")
    ] = False,
) -> None:
    """Measure images per second from files on disk to committed rows, beside a bare loop."""
    drop_developer_settings()
    if images is None:
        images = min(ALL_IMAGES[pictures], PROFILE_IMAGES) if profile else ALL_IMAGES[pictures]
    if images > MOST_IMAGES[pictures]:
        raise typer.BadParameter(f"there are {MOST_IMAGES[pictures]:,} {pictures}, not {images:,}.")
    if pictures == Pictures.PHOTOGRAPHS:
        if work == Choice.SQLITE:
            raise typer.BadParameter("photographs are measured on PostgreSQL only.")
        work = Choice.POSTGRESQL
    load_average = os.getloadavg()[0]
    console = Console(highlight=False)
    kept = kept_folder(work_dir)
    model = train_once(kept)
    folder = make_images(pictures, images, Settings.load(home=kept / "model"), kept)
    for one in Work if work == Choice.ALL else [Work(work.value)]:
        if profile:
            say(f"profiling on {one}")
            print_timings(_profile(one, model, folder, processes), processes, console)
            continue
        result = _measure(one, model, folder, pictures, images=images, rounds=rounds, processes=processes)
        print_result(result, console)
        if json is None and (images < ALL_IMAGES[pictures] or rounds < ROUNDS):
            say(f"not written to a file: pass --json, or take all images and {ROUNDS} rounds")
        else:
            say(f"written to {write_result(result, json or RESULTS, load_average)}")


def _measure(
    work: Work,
    model: TrainedModel,
    folder: Path,
    pictures: Pictures,
    *,
    images: int,
    rounds: int,
    processes: int,
) -> Result:
    with short_folder() as home, databases(work, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with (
            Pipeline(settings, model) as pipeline,
            BareLoop(plans(both.bare_loop, model, processes)) as bare_loop,
        ):
            say(f"{work}: warming up")
            pipeline.warm_up(folder)
            measured: list[Round] = []
            # The first pair does not count: its caches are cold.
            for number in range(rounds + 1):
                settle(both.settle)
                ours = pipeline.classify(folder)
                settle(both.settle)
                theirs = bare_loop.classify(folder)
                check_rows((both.pipeline, ours.job_id), (both.bare_loop, theirs.job_id), images=images)
                drop_payloads(settings)
                one = Round(ours.seconds, ours.submit_seconds, theirs.seconds)
                say(
                    f"{work}: {f'round {number} of {rounds}' if number else 'not counted'}: "
                    f"pipeline {images / one.pipeline:,.0f} images/s, "
                    f"bare loop {images / one.bare_loop:,.0f}, efficiency {one.efficiency:.2f}"
                )
                if number:
                    measured.append(one)
    return Result(work, pictures, images, settings, both.facts, measured)


def _profile(work: Work, model: TrainedModel, folder: Path, processes: int) -> dict[str, float]:
    with short_folder() as home, databases(work, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with contextlib.closing(Ledger(settings.ledger)) as ledger:
            make_champion(model, ledger, settings)
        return profile_timings(settings, model, folder)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
