"""`labelmill models report`: a model's figures as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Conflict
from jobs.ledger.naming import model_named
from labelmill.client import Client
from labelmill.console import examples, print_data, tells_errors

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models report 06h0w4r0rf0dkckt",
        "labelmill models report 06h0w4r0rf0dkckt --output docs/report.html --force",
    )
)
@tells_errors
def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page's file. Left out: model-MODEL.html here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a page on how good a model is, beside the champion; prints the path of its file.

    One HTML file that holds all it shows: figures, learning curves, confusion matrix, calibration, mistakes.
    """
    # Only here: nobody should wait for the templates who asked for another command's --help.
    from labelmill.reporting.facts import gather
    from labelmill.reporting.page import render

    with Client() as client, client.ledger.reading() as connection:
        model = model_named(connection, model).id
        page = render(gather(connection, model))
    path = output or Path(f"model-{model}.html")
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(page)
    except FileExistsError:
        raise Conflict(f"{path} is there already: --force writes over it, --output names another.") from None
    print_data(str(path))
