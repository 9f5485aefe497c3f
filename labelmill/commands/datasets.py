"""`labelmill datasets`: list, show, add and remove datasets."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import Annotated, Final

import typer

from labelmill.client import Client
from labelmill.console import (
    examples,
    print_data,
    print_json,
    report_errors,
    say,
)
from labelmill.progress import ProgressLine
from labelmill.tables import Column, print_table, short_time

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    help="List the datasets, show one, add to one, or remove one.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


@app.callback(epilog=examples("labelmill datasets", "labelmill datasets add birds photos/"))
@report_errors
def datasets(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the datasets; or show one, add to one, or remove one."""
    if context.invoked_subcommand is not None:
        return
    with Client() as client:
        found = client.datasets()
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        print_table(_COLUMNS, found)


_COLUMNS: Final = (
    Column("dataset", attrgetter("dataset")),
    Column("version", lambda each: str(each.version), right=True),
    Column("images", lambda each: f"{each.summary['images']:,}", right=True),
    Column("classes", lambda each: str(len(each.classes)), right=True),
    Column("created (UTC)", lambda each: short_time(each.created_at), leave_out=1),
)


@app.command(epilog=examples("labelmill datasets add birds photos/"))
@report_errors
def add(
    name: Name,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders with one subfolder per class.",
        ),
    ],
    by_reference: Annotated[
        bool,
        typer.Option(
            "--by-reference",
            help="Store where the images are instead of their bytes; every trainer must reach them there.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add labelled images to a dataset as a new version, and create it if it does not exist."""
    with Client() as client, ProgressLine("adding") as progress:
        added = client.add_dataset(name, *sources, by_reference=by_reference, on_progress=progress.update)
    version = added.version
    if as_json:
        print_json(asdict(version) | {"new": added.new})
    else:
        print_data(f"{version.dataset} {version.version}")


@app.command(epilog=examples("labelmill datasets show birds"))
@report_errors
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a version."""
    with Client() as client:
        print_json(asdict(client.dataset(name)))


@app.command(epilog=examples("labelmill datasets remove birds"))
@report_errors
def remove(name: Name, as_json: AsJson = False) -> None:
    """Remove a dataset with all its versions and images. The models that were trained on it stay."""
    with Client() as client:
        client.remove_dataset(name)
    say(f"dataset {name} is removed")
    if as_json:
        print_json({"dataset": name, "removed": True})
