"""`labelmill models list` and `show`."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import Annotated, Any, Final

import typer

from jobs.models.evaluation import Evaluation
from jobs.models.model import Model, name_classes, name_input
from labelmill.client import Client
from labelmill.commands.options import AliasOfOption, AsJsonList
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, print_json, report_errors
from labelmill.reporting.evaluation_lines import figures_to_json

app = typer.Typer(add_completion=False)


def _describe_aliases(model: Model) -> str:
    pin = "" if model.pinned_at is None else " (pinned)"
    return f"{', '.join(model.aliases) or '-'}{pin}"


def _describe_classes(model: Model) -> str:
    return f"{len(model.classes)}: {name_classes(model.classes)}"


def _describe_accuracy(model: Model) -> str:
    if model.accuracy is None or model.accuracy_version is None:
        return "-" if model.accuracy is None else f"{model.accuracy:.4f}"
    return f"{model.accuracy:.4f} on version {model.accuracy_version}"


COLUMNS: Final = (
    Column("model", attrgetter("id")),
    Column("dataset", attrgetter("dataset"), min_width=8),
    Column("aliases", _describe_aliases),
    Column("kind", attrgetter("architecture")),
    Column("accuracy", _describe_accuracy),
    Column("input", lambda model: name_input(model.input_spec)),
    Column("file", lambda model: str(model.metrics.get("file", "-")), min_width=8),  # of a registered model
    Column("classes", _describe_classes, min_width=12),
    Column("created (UTC)", lambda model: short_time(model.created_at), leave_out=1),
)


@app.command("list", epilog=examples("labelmill models list --json", "labelmill models list --dataset birds"))
@report_errors
def list_all(
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the models of this dataset.")
    ] = None,
    as_json: AsJsonList = False,
) -> None:
    """List the models, newest first."""
    with Client() as client:
        found = client.models(dataset=dataset)
    print_rows(COLUMNS, found, as_json=as_json)


@app.command(epilog=examples("labelmill models show 06h0w4r0rf0dkckt"))
@report_errors
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, or an alias.")],
    dataset: AliasOfOption = None,
    _as_json: Annotated[bool, typer.Option("--json", help="Print JSON; this command always does.")] = False,
) -> None:
    """Show everything that is recorded about a model, as JSON.

    This includes its classes, input and SHA-256, its latest evaluation, the gate's latest verdict,
    and the runtimes that it was compiled for.
    """
    with Client() as client:
        found = client.model(model, dataset=dataset)
        stored = client.evaluation(found.id)
        verdict = client.verdict(found.id)
        runtimes = client.runtimes(found.id)
    evaluation = None
    if stored is not None:
        evaluation = {
            "dataset": stored.dataset,
            "dataset_version": stored.version,
            "data_fingerprint": stored.data_fingerprint,
            "created_at": stored.created_at,
            **evaluation_to_json(stored.evaluation),
        }
    print_json({**asdict(found), "evaluation": evaluation, "verdict": verdict, "runtimes": runtimes})


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation's figures, without the images of its mistakes."""
    return {
        **figures_to_json(evaluation),
        "mistakes": [
            {name: value for name, value in asdict(mistake).items() if name != "png"}
            for mistake in evaluation.mistakes
        ],
    }
