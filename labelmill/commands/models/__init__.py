"""`labelmill models`: what has been trained, and which of it is used. One file a few subcommands."""

from __future__ import annotations

import typer

from labelmill.commands.models import health, listing, promoting, registering, report, shadow

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List the models, show one, promote one, or take a promotion back.",
)
# Without a name, so that their commands become this one's.
app.add_typer(listing.app)
app.add_typer(promoting.app)
app.add_typer(registering.app)
app.add_typer(report.app)
app.add_typer(health.app)
app.add_typer(shadow.app)
