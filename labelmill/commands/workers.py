"""`labelmill workers`: who is there, and at what."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.ledger.workers import WorkerStatus
from labelmill.client import Client
from labelmill.console import counted, examples, print_data, print_json, tells_errors, time_words
from producer.export import printable

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill workers", "labelmill workers --json"))
@tells_errors
def workers(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the workers and trainers of the last day: since when, seen when, at what."""
    with Client() as client:
        found = client.workers()
    if as_json:
        print_json([_to_json(worker) for worker in found])
        return
    print_data(f"{'worker':<28}{'queue':<20}{'processes':>9}  {'since':<27}{'seen':>12}  at")
    for worker in found:
        seen = f"{worker.seen_seconds:,.0f} s ago"
        print_data(
            f"{printable(worker.name):<28}{printable(worker.queue):<20}{worker.processes:>9}  "
            f"{time_words(worker.started_at):<27}{seen:>12}  {_at(worker)}"
        )


def _at(worker: WorkerStatus) -> str:
    if not worker.alive:
        return "gone"
    if worker.run is not None:
        return f"training run {worker.run}"
    return counted(len(worker.chunks), "chunk") if worker.chunks else "-"


def _to_json(worker: WorkerStatus) -> dict[str, object]:
    return asdict(worker) | {"alive": worker.alive}
