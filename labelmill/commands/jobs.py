"""`labelmill jobs`: the latest jobs."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from jobs.schema import JobState
from labelmill.client import Client
from labelmill.console import examples, print_json, report_errors
from labelmill.follow import format_state, status_to_json
from labelmill.tables import Column, print_table, short_time

app = typer.Typer(add_completion=False)

_COLUMNS: Final = (
    Column("job"),
    Column("state", least=15),
    Column("images", right=True),
    Column("done", right=True),
    Column("failed", right=True),
    Column("created (UTC)", leave_out=1),
    Column("key", least=8),
)


@app.command(epilog=examples("labelmill jobs", "labelmill jobs --state running --json"))
@report_errors
def jobs(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the latest jobs, newest first."""
    with Client() as client:
        found = client.jobs(limit=limit, state=state)
    if as_json:
        print_json([status_to_json(status) for status in found])
        return
    print_table(
        _COLUMNS,
        [
            (
                status.id,
                format_state(status),
                f"{status.total:,}",
                f"{status.done:,}",
                f"{status.failed:,}",
                short_time(status.created_at),
                status.key if status.key is not None else "-",
            )
            for status in found
        ],
    )
