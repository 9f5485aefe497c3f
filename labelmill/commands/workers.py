"""`labelmill workers`: list workers and trainers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from jobs.ledger.workers import WorkerStatus
from labelmill.client import Client
from labelmill.console import examples, pluralize, print_json, report_errors
from labelmill.tables import Column, print_table, short_time

app = typer.Typer(add_completion=False)

_COLUMNS: Final = (
    Column("worker", least=16),
    Column("queue"),
    Column("processes", right=True, leave_out=1),
    Column("since (UTC)", leave_out=2),
    Column("seen", right=True),
    Column("at"),
)


@app.command(epilog=examples("labelmill workers", "labelmill workers --json"))
@report_errors
def workers(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the workers and trainers of the last day, and what they work on."""
    with Client() as client:
        found = client.workers()
    if as_json:
        print_json([_to_json(worker) for worker in found])
        return
    print_table(
        _COLUMNS,
        [
            (
                worker.name,
                worker.queue,
                f"{worker.processes}",
                short_time(worker.started_at),
                f"{worker.seen_seconds:,.0f} s ago",
                _current_work(worker),
            )
            for worker in found
        ],
    )


def _current_work(worker: WorkerStatus) -> str:
    if not worker.alive:
        return "gone"
    if worker.run is not None:
        return f"training run {worker.run}"
    return pluralize(len(worker.chunks), "chunk") if worker.chunks else "-"


def _to_json(worker: WorkerStatus) -> dict[str, object]:
    return asdict(worker) | {"alive": worker.alive}
