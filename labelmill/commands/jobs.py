"""`labelmill jobs`: the latest jobs."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Final

import typer

from jobs.schema import JobState
from labelmill.commands.connection import open_client
from labelmill.commands.follow_job import format_state, status_to_json
from labelmill.commands.options import AsJsonList, OnlyProjectOption
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, report_errors

app = typer.Typer(add_completion=False)

_COLUMNS: Final = (
    Column("job", attrgetter("id")),
    Column("project", attrgetter("project"), leave_out=2),
    Column("state", format_state, min_width=15),
    Column("images", lambda job: f"{job.total:,}", right=True),
    Column("done", lambda job: f"{job.done:,}", right=True),
    Column("failed", lambda job: f"{job.failed:,}", right=True),
    Column("created (UTC)", lambda job: short_time(job.created_at), leave_out=1),
    Column("key", lambda job: "-" if job.key is None else job.key, min_width=8),
)


@app.command(epilog=examples("labelmill jobs", "labelmill jobs --state running --json"))
@report_errors
def jobs(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    state: Annotated[JobState | None, typer.Option(help="Only those in this state.")] = None,
    project: OnlyProjectOption = None,
    as_json: AsJsonList = False,
) -> None:
    """List the latest jobs, newest first."""
    with open_client() as client:
        found = client.jobs(limit=limit, state=state, project=project)
    print_rows(_COLUMNS, found, as_json=as_json, row=status_to_json)
