"""Run the parts one after another, on fresh servers, and write one JSON file."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final

import typer

from benchmarks.databases import Work, databases
from benchmarks.report import write_measured
from benchmarks.scale.backlog import measure_backlog
from benchmarks.scale.ledgers import prepared_ledger
from benchmarks.scale.rows import measure_hot_row, measure_rows
from benchmarks.scale.traffic import count_requests, measure_commands, measure_messages
from benchmarks.setup import (
    PROCESSES,
    RESULTS,
    Json,
    Processes,
    WorkDir,
    prepare,
    run,
    settings_in,
    short_folder,
)
from labelmill.console.terminal import report_errors, say

#: Images of the chunks whose messages are counted: small, so that there are many.
_SMALL_CHUNK: Final = 200


@report_errors
def main(
    rows: Annotated[int, typer.Option(min=1_000, help="Rows of the large table.")] = 10_000_000,
    first_rows: Annotated[int, typer.Option(min=1_000, help="Rows written as workers do.")] = 1_000_000,
    hot_chunks: Annotated[
        int, typer.Option(min=8, help="Chunks of one image, for competing processes.")
    ] = 2_400,
    pending: Annotated[int, typer.Option(min=5_000, help="Chunks that wait.")] = 500_000,
    finished: Annotated[int, typer.Option(min=1, help="Jobs that finished before.")] = 1_000_000,
    images: Annotated[
        int, typer.Option(min=1_000, help="Images of the job that takes real workers.")
    ] = 20_000,
    repeats: Annotated[int, typer.Option(min=2, help="How often each statement is measured.")] = 20,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure what each part costs at the scale of a billion images per day, on PostgreSQL."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=images)
    measured: dict[str, Any] = {}
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        measured["database"] = both.facts
        with prepared_ledger(both, both.pipeline) as prepared:
            measured["rows"] = measure_rows(prepared, first=first_rows, more=rows)
        with prepared_ledger(both, both.bare_loop) as prepared:
            measured["hot_row"] = measure_hot_row(prepared, chunks=hot_chunks)
    measured["backlog"] = {}
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        for url, waits, ended in ((both.bare_loop, 5_000, 1_000), (both.pipeline, pending, finished)):
            with prepared_ledger(both, url) as prepared:
                name = f"{waits} pending, {ended} finished"
                measured["backlog"][name] = measure_backlog(
                    prepared, pending=waits, finished=ended, repeats=repeats
                )
                settings = settings_in(home, url, processes)
                measured["backlog"][name]["messages"] = measure_messages(prepared, settings, ticks=repeats)
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        small = settings.model_copy(update={"chunk_images": _SMALL_CHUNK})
        measured["commands"] = measure_commands(small, model, folder)
        apart = settings_in(home / "apart", both.bare_loop, processes)
        measured["requests"] = count_requests(apart, model, folder)
    facts = {"rows_asked": rows, "hot_chunks": hot_chunks, "processes": processes}
    say(f"written to {write_measured('scale', facts | measured, json, load_average)}")


if __name__ == "__main__":
    run(main)
