"""`labelmill workers`: list workers and trainers."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import Final

import typer

from jobs.ledger.workers import WorkerStatus
from labelmill.client import Client
from labelmill.commands.options import AsJsonList
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, pluralize, report_errors

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill workers", "labelmill workers --json"))
@report_errors
def workers(
    as_json: AsJsonList = False,
) -> None:
    """List the workers, trainers, webhook senders and beats of the last day, and what they work on.

    A worker that was not seen for 30 seconds is `gone`; one that was stopped normally is not listed. If a
    worker has a problem, the list shows it: its processes keep dying, its clock is wrong, or it could not
    load a champion.
    """
    with Client() as client:
        found = client.workers()
    print_rows(_COLUMNS, found, as_json=as_json, row=lambda worker: asdict(worker) | {"alive": worker.alive})


def _current_work(worker: WorkerStatus) -> str:
    if not worker.alive:
        return "gone"
    if worker.problem is not None:
        return worker.problem
    if worker.run is not None:
        return f"training run {worker.run}"
    return pluralize(len(worker.chunks), "chunk") if worker.chunks else "-"


_COLUMNS: Final = (
    Column("worker", attrgetter("name"), min_width=16),
    Column("queue", attrgetter("queue")),
    Column("processes", lambda worker: f"{worker.processes}", right=True, leave_out=1),
    Column("since (UTC)", lambda worker: short_time(worker.started_at), leave_out=2),
    Column("seen", lambda worker: f"{worker.seen_seconds:,.0f} s ago", right=True),
    Column("at", _current_work),
)
