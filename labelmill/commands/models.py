"""`labelmill models`: what has been trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs.ledger.models import get_model
from jobs.model import Model
from labelmill.client import Client
from labelmill.console import examples, print_data, print_json, tells_errors

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List the models, or show one.")


@app.command("list", epilog=examples("labelmill models list --json"))
@tells_errors
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the models, newest first."""
    with Client() as client:
        found = client.models()
    if as_json:
        print_json([_to_json(model) for model in found])
        return
    print_data(f"{'model':<18}{'architecture':<14}{'accuracy':>9}  {'sha256':<14}{'created':<27}aliases")
    for model in found:
        accuracy = f"{model.accuracy:.4f}" if model.accuracy is not None else "-"
        created = model.created_at.isoformat(sep=" ", timespec="seconds")
        print_data(
            f"{model.id:<18}{model.architecture:<14}{accuracy:>9}  {model.sha256[:12]:<14}{created:<27}"
            f"{', '.join(model.aliases)}"
        )


@app.command(epilog=examples("labelmill models show 06h0w4r0rf0dkckt"))
@tells_errors
def show(model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")]) -> None:
    """Show all that is recorded of a model, as JSON: classes, input, metrics, SHA-256."""
    with Client() as client, client.ledger.reading() as connection:
        print_json(_to_json(get_model(connection, model)))


def _to_json(model: Model) -> dict[str, Any]:
    return asdict(model)
