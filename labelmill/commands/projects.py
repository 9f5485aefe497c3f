"""`labelmill projects`: create and list projects."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Final

import typer

from jobs.ledger.api.projects import create_project, list_projects
from labelmill.client import Client
from labelmill.commands.groups import listing_group
from labelmill.commands.options import AsJsonList
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, print_data, report_errors

app = listing_group(
    "List the projects, each with its own jobs, files, keys and webhooks, or create one.",
    "labelmill projects",
    "labelmill projects create birds",
)

_COLUMNS: Final = (
    Column("project", attrgetter("name"), min_width=8),
    Column("keys", lambda project: f"{project.keys:,}", right=True),
    Column("validating", lambda project: f"{project.validating:,}", right=True, leave_out=2),
    Column("running", lambda project: f"{project.running:,}", right=True),
    Column("images waiting", lambda project: f"{project.waiting:,}", right=True),
    Column("jobs", lambda project: f"{project.jobs:,}", right=True),
    Column("images", lambda project: f"{project.images:,}", right=True),
    Column("file bytes", lambda project: f"{project.file_bytes:,}", right=True, leave_out=1),
    Column("created (UTC)", lambda project: short_time(project.created_at), leave_out=3),
)


@app.command("list", epilog=examples("labelmill projects list --json"))
@report_errors
def list_all(as_json: AsJsonList = False) -> None:
    """List the projects, with what each has running, waiting and stored.

    Projects with work take turns, so that one with many images does not hold up the others.
    """
    with Client() as client, client.ledger.reading() as connection:
        found = list_projects(connection)
    print_rows(_COLUMNS, found, as_json=as_json)


@app.command(epilog=examples("labelmill projects create birds"))
@report_errors
def create(name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, in lower case.")]) -> None:
    """Create a project, for the option --project of other commands; prints its name."""
    with Client() as client, client.ledger.transaction() as connection:
        create_project(connection, name)
    print_data(name)
