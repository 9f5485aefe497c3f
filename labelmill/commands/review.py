"""`labelmill review`: list the images of a job that are most worth checking."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import asdict
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any, Final

import typer

from labelmill.client import Client
from labelmill.commands.follow_job import report_incomplete
from labelmill.console.destination import (
    STDOUT,
    SpreadsheetOption,
    choose_format,
    csv_escape,
    opened,
    output_option,
    shown,
)
from labelmill.console.progress import ProgressLine
from labelmill.console.tables import Column, table_lines, terminal_width
from labelmill.console.terminal import examples, json_text, pluralize, print_data, report_errors, say
from labelmill.labels.reviewing import Review, ReviewImage
from producer.export import Escape

app = typer.Typer(add_completion=False)


class ReviewFormat(StrEnum):
    """The formats in which the images are listed."""

    TABLE = "table"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


#: The format of a file by the ending of its name.
_BY_ENDING: Final = {
    ".csv": ReviewFormat.CSV,
    ".html": ReviewFormat.HTML,
    ".json": ReviewFormat.JSON,
}

_COLUMNS: Final = (
    Column("index", lambda image: f"{image.index}", right=True),
    Column("confidence", lambda image: f"{image.confidence:.4f}", right=True),
    Column("predicted", attrgetter("label"), min_width=10),
    Column("name", attrgetter("name"), min_width=10),
)

#: `label` is for the person: `correct --from` reads it, and skips rows in which it is empty.
_CSV_COLUMNS: Final = ("job", "index", "label", "predicted", "confidence", "name")


@app.command(
    epilog=examples(
        "labelmill review JOB",
        "labelmill review JOB --limit 200 --output review.csv",
        "labelmill review JOB --limit 200 --output review.html",
    )
)
@report_errors
def review(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many images.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="List near-duplicates, too.")] = False,
    form: Annotated[
        ReviewFormat | None,
        typer.Option(
            "--format",
            help="The format; html is a contact sheet. Default: by the ending of --output (.csv, .html, "
            ".json), otherwise a table.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[
        str | None, output_option("Write into this file or URL; - (the default) is stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    spreadsheet: SpreadsheetOption = False,
) -> None:
    """List the images of a job that are most worth checking: lowest confidence first, no near-duplicates.

    Images with an error or a correction are skipped. So are images that look the same, in shapes and colours,
    as a less certain one with the same label or as one of the job's 1,000 latest corrections; --all lists
    them. Four times --limit images are compared, so the list is shorter if most of them look the same; stderr
    says how many were skipped, and how many cannot be read. Needs Pillow (the extra `worker`). If the job's
    payloads are purged, the exit code is 2.

    CSV has the columns job, index, label, predicted, confidence and name. The label is empty: fill it in for
    the images that you have looked at, and give the file to `labelmill correct --from`.
    """
    output = None if output == STDOUT else output
    chosen = choose_format(
        {"--format": form, "--json": ReviewFormat.JSON if as_json else None},
        output,
        _BY_ENDING,
        ReviewFormat.TABLE,
    )
    escape = csv_escape(chosen, output, spreadsheet=spreadsheet)
    with Client() as client:
        job = client.job_id(job)
        status = client.status(job)
        with ProgressLine("looking for images to check") as progress:
            found = client.review(
                job,
                limit=limit,
                near_duplicates=show_all,
                on_progress=lambda done, total: progress.update(done, total=total),
            )
    report_incomplete(status)
    if output is None:
        print_data(_to_text(found, chosen, width=terminal_width(), escape=escape).removesuffix("\n"))
    else:
        with opened(output, force=force) as file:
            file.write(_to_text(found, chosen, width=sys.maxsize, escape=escape).encode())
    if not found.images:
        say(f"no image of job {job} is left to check")
    if found.duplicates:
        say(f"left out {pluralize(found.duplicates, 'near-duplicate')} (--all lists them)")
    if found.unreadable:
        say(f"left out {pluralize(found.unreadable, 'image')} that cannot be read")
    if output is not None:
        say(f"{pluralize(len(found.images), 'image')} written to {shown(output)}")


def _to_text(found: Review, form: ReviewFormat, *, width: int, escape: Escape | None) -> str:
    """Return the list as text; lines of a table are no longer than `width`."""
    if form == ReviewFormat.HTML:
        from labelmill.reporting.contact_sheet import render_contact_sheet

        return render_contact_sheet(found)
    if form == ReviewFormat.CSV:
        return _to_csv(found, escape or str)
    if form == ReviewFormat.JSON:
        return json_text({**asdict(found), "images": [_to_json(image) for image in found.images]})
    return "\n".join(table_lines(_COLUMNS, found.images, width))


def _to_csv(found: Review, escape: Escape) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_CSV_COLUMNS)
    for image in found.images:
        label, name = escape(image.label), escape(image.name)
        rows.writerow([found.job, image.index, "", label, image.confidence, name])
    return text.getvalue()


def _to_json(image: ReviewImage) -> dict[str, Any]:
    return {name: value for name, value in asdict(image).items() if name != "thumbnail"}
