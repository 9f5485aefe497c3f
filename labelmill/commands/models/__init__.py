"""`labelmill models`: list, show, register, compile, edit, remove, evaluate, compare and promote models."""

from __future__ import annotations

from labelmill.commands.groups import listing_group
from labelmill.commands.models import (
    compiling,
    editing,
    health,
    listing,
    promoting,
    registering,
    report,
    shadow,
)

app = listing_group(
    "List the models, show one, promote one, or roll back a promotion.",
    "labelmill models",
    "labelmill models show MODEL",
)
# Added without a name, so that their commands become commands of `models`.
app.add_typer(listing.app)
app.add_typer(promoting.app)
app.add_typer(registering.app)
app.add_typer(compiling.app)
app.add_typer(editing.app)
app.add_typer(report.app)
app.add_typer(health.app)
app.add_typer(shadow.app)
