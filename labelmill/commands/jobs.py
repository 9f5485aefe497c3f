"""`labelmill jobs`: the latest jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.schema import JobState
from labelmill.client import Client
from labelmill.console import examples, print_data, print_json, tells_errors, time_words
from labelmill.watching import state_words, status_to_json
from producer.export import printable

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill jobs", "labelmill jobs --state running --json"))
@tells_errors
def jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the latest jobs, newest first."""
    with Client() as client:
        found = client.jobs(limit=limit, state=state)
    if as_json:
        print_json([status_to_json(status) for status in found])
        return
    print_data(f"{'job':<18}{'state':<29}{'images':>12}{'done':>12}{'failed':>9}  {'created':<27}key")
    for status in found:
        created = time_words(status.created_at)
        key = printable(status.key) if status.key is not None else "-"
        print_data(
            f"{status.id:<18}{state_words(status):<29}{status.total:>12,}{status.done:>12,}"
            f"{status.failed:>9,}  {created:<27}{key}"
        )
