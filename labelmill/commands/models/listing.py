"""`labelmill models list` and `show`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs.evaluation import Evaluation
from jobs.model import Model
from labelmill.client import Client
from labelmill.commands.models.table import COLUMNS, model_row
from labelmill.console import examples, print_json, tells_errors
from labelmill.tables import print_table

app = typer.Typer(add_completion=False)


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
    print_table(COLUMNS, map(model_row, found))


@app.command(epilog=examples("labelmill models show 06h0w4r0rf0dkckt"))
@tells_errors
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    _as_json: Annotated[bool, typer.Option("--json", help="Print JSON; it always does.")] = False,
) -> None:
    """Show everything that is recorded about a model, as JSON.

    That is its classes, input and SHA-256, its latest evaluation, and the gate's latest verdict.
    """
    with Client() as client:
        found = client.model(model)
        stored = client.evaluation(found.id)
        verdict = client.verdict(found.id)
    evaluation = None
    if stored is not None:
        evaluation = {
            "data_fingerprint": stored.data_fingerprint,
            "created_at": stored.created_at,
            **evaluation_to_json(stored.evaluation),
        }
    print_json({**_to_json(found), "evaluation": evaluation, "verdict": asdict(verdict) if verdict else None})


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation's figures, without the images of its mistakes."""
    return {
        **asdict(evaluation),
        "mistakes": [
            {name: value for name, value in asdict(mistake).items() if name != "png"}
            for mistake in evaluation.mistakes
        ],
    }


def _to_json(model: Model) -> dict[str, Any]:
    return asdict(model)
