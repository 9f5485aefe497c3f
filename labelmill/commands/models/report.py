"""`labelmill models report`: write a report on a model."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.commands.options import AliasOfOption
from labelmill.console.destination import STDOUT, opened, output_option, shown
from labelmill.console.terminal import examples, print_data, report_errors

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models report 06h0w4r0rf0dkckt",
        "labelmill models report 06h0w4r0rf0dkckt --output report.html --force",
    )
)
@report_errors
def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, or an alias.")],
    dataset: AliasOfOption = None,
    output: Annotated[
        str | None,
        output_option("Write into this file or URL; - is stdout. Default: model-MODEL.html in this folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a report on an evaluated model, compared with the champion; prints the path of its file.

    The report is one HTML file: accuracy, verdict, data, learning curves, confusion matrix, precision and
    recall, calibration, and the worst mistakes as images.
    """
    with Client() as client:
        model = client.model(model, dataset=dataset).id
        page = client.report(model)
    output = f"model-{model}.html" if output is None else output
    with opened(output, force=force) as file:
        file.write(page.encode())
    if output != STDOUT:  # there the page is the data
        print_data(shown(output))
