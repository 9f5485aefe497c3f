"""`labelmill models`: list, show, register, edit, remove, evaluate, compare and promote models."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.commands.groups import ListingGroup
from labelmill.commands.models import editing, health, listing, promoting, registering, report, shadow
from labelmill.console.terminal import examples, report_errors

app = typer.Typer(
    add_completion=False,
    cls=ListingGroup,
    invoke_without_command=True,
    help="List the models, show one, promote one, or roll back a promotion.",
)


@app.callback(epilog=examples("labelmill models", "labelmill models show MODEL"))
@report_errors
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models, newest first; or show one, promote one, or roll back a promotion."""
    if context.invoked_subcommand is None:
        listing.list_all(dataset=None, as_json=as_json)


# Added without a name, so that their commands become commands of `models`.
app.add_typer(listing.app)
app.add_typer(promoting.app)
app.add_typer(registering.app)
app.add_typer(editing.app)
app.add_typer(report.app)
app.add_typer(health.app)
app.add_typer(shadow.app)
