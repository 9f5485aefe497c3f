"""`labelmill gate`: what a model must reach to become a dataset's champion."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from jobs.errors import UserError
from jobs.models.promotion import GateLimits
from labelmill.client import Client
from labelmill.console.tables import Column, print_rows
from labelmill.console.terminal import examples, report_errors

app = typer.Typer(add_completion=False)

#: Stands for None on the command line and in the table.
OFF: Final = "off"


def _limit(text: str) -> float | str:
    """Read a number, or the word `off`."""
    if text == OFF:
        return OFF
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor {OFF!r}.") from None


def _limit_option(help_text: str) -> Any:
    return typer.Option(metavar=f"X|{OFF}", parser=_limit, help=help_text)


@app.command(
    epilog=examples(
        "labelmill gate",
        "labelmill gate birds --min-accuracy 0.9 --margin 0.02",
        "labelmill gate mnist --max-image-microseconds off",
        "labelmill gate birds --defaults",
    )
)
@report_errors
def gate(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="The dataset. Default: list all.")
    ] = None,
    min_accuracy: Annotated[Any, _limit_option("The minimum accuracy on the test set, 0 to 1.")] = None,
    min_class_recall: Annotated[Any, _limit_option("The minimum recall of each class, 0 to 1.")] = None,
    significance: Annotated[
        float | None,
        typer.Option(help="A model is better than the champion only if the p value is below this."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="How much accuracy may drop on the test set if it improves on the live set."),
    ] = None,
    live_margin: Annotated[
        float | None,
        typer.Option(help="How much accuracy may drop on the live set if it improves on the test set."),
    ] = None,
    max_calibration_error: Annotated[
        Any, _limit_option("The maximum expected calibration error, 0 to 1.")
    ] = None,
    max_image_microseconds: Annotated[Any, _limit_option("The maximum time per image.")] = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="Return to the default limits.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Set what a model must reach to become a dataset's champion, and list these limits.

    Limits that you do not give stay as they are. The word off switches a limit off, except --significance and
    the margins. New limits apply to the next training run and the next `models promote`; earlier verdicts
    stay.
    """
    given = {
        "min_accuracy": min_accuracy,
        "min_class_recall": min_class_recall,
        "significance": significance,
        "margin": margin,
        "live_margin": live_margin,
        "max_calibration_error": max_calibration_error,
        "max_image_microseconds": max_image_microseconds,
    }
    changes = {name: None if value == OFF else value for name, value in given.items() if value is not None}
    with Client() as client:
        if dataset is None:
            if changes or defaults:
                raise UserError("Name the dataset, for example `labelmill gate mnist --defaults`.")
            found = {each.dataset: client.gate(each.dataset) for each in client.datasets()}
        elif changes or defaults:
            found = {dataset: client.set_gate(dataset, defaults=defaults, **changes)}
        else:
            found = {dataset: client.gate(dataset)}
    print_rows(
        _COLUMNS,
        found.items(),
        as_json=as_json,
        row=lambda item: {"dataset": item[0], **asdict(item[1])},
    )


def _column(heading: str, name: str) -> Column:
    def text(item: tuple[str, GateLimits]) -> str:
        value = getattr(item[1], name)
        return OFF if value is None else f"{value:g}"

    return Column(heading, text, right=True)


_COLUMNS: Final = (
    Column("dataset", lambda item: item[0], min_width=10),
    _column("accuracy", "min_accuracy"),
    _column("recall", "min_class_recall"),
    _column("p", "significance"),
    _column("margin", "margin"),
    _column("live margin", "live_margin"),
    _column("calibration", "max_calibration_error"),
    _column("µs/image", "max_image_microseconds"),
)
