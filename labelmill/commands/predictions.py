"""`labelmill predictions`: print or export a job's predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import IO, Annotated, Final

import typer

from jobs.errors import UserError
from jobs.ledger.jobs.outcomes import Prediction
from labelmill.commands.connection import open_client
from labelmill.commands.follow_job import report_incomplete
from labelmill.console.destination import (
    STDOUT,
    SpreadsheetOption,
    as_text,
    choose_format,
    csv_escape,
    opened,
    output_option,
    shown,
)
from labelmill.console.terminal import examples, pluralize, report_errors, say
from producer.export import Escape, Format, check_parquet, write_csv, write_jsonl, write_parquet, write_table

app = typer.Typer(add_completion=False)

#: The format of a file by the ending of its name.
_BY_ENDING: Final = {
    ".csv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
    ".txt": Format.TABLE,
}


@app.command(
    epilog=examples(
        "labelmill predictions JOB --below 0.6",
        "labelmill predictions JOB --errors --format csv",
        "labelmill predictions JOB --output job.parquet",
        "labelmill predictions JOB --output s3://bucket/predictions/job.parquet",
    )
)
@report_errors
def predictions(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    label: Annotated[str | None, typer.Option(help="Only images with this label.")] = None,
    below: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Only labels with a confidence below this.")
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only images that got no label.")] = False,
    name: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only images whose name matches, such as '*/7/*'.")
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="The format. Default: by the ending of --output (.csv, .jsonl, .ndjson, .parquet, .txt), "
            "otherwise a table.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many; stderr names the cursor for --after.")
    ] = None,
    after: Annotated[int, typer.Option(metavar="CURSOR", help="Continue after this index.")] = -1,
    output: Annotated[
        str | None,
        output_option(
            "Write into this file or URL, such as s3://bucket/job.parquet; - (the default) is stdout."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    spreadsheet: SpreadsheetOption = False,
) -> None:
    """Print or export a job's predictions, in the order of its images.

    Prints every row of the job unless --limit is given, and streams them, so memory stays small. If the job
    has not finished, it prints the predictions so far, and stderr says how many images are done. If several
    filters are given, all must match. If --limit leaves rows out, stderr says how to get the next ones.

    The columns are index, name, label, confidence, error, detail, model and alternatives. CSV has a header
    row and empty fields for missing values; JSON lines and Parquet have null. The alternatives are filled for
    jobs with --top: a list of labels with their confidences, in CSV as JSON. The table shows the classes
    after the label.

    The file of --output appears only when it is complete. If the job is purged during an export, the output
    is incomplete, and the exit code is 2.
    """
    output = None if output == STDOUT else output
    chosen = choose_format(
        {"--format": form, "--json": Format.JSONL if as_json else None}, output, _BY_ENDING, Format.TABLE
    )
    escape = csv_escape(chosen, output, spreadsheet=spreadsheet)
    last: Prediction | None = None

    with open_client() as client:
        job = client.job_id(job)
        # Read before the first row, so that the rows include all images that this status counts.
        status = client.status(job)
        found = client.predictions(
            job, label=label, below=below, errors=errors, name=name, after=after, limit=limit
        )

        # Read one row before opening the file, which empties it: if reading fails, it keeps its contents.
        first = list(islice(found, 1))

        def track_last() -> Iterator[Prediction]:
            nonlocal last
            for prediction in chain(first, found):
                last = prediction
                yield prediction

        count = _write(track_last(), chosen, output, force=force, escape=escape)
        report_incomplete(status)
        if not count and after < 0 and (label is not None or below is not None or errors or name is not None):
            # The glob may be meant for the last part of a path.
            may_be_part = name is not None and not name.startswith("*")
            hint = f": --name matches the whole name, so try --name '*{name}'" if may_be_part else ""
            say(f"no image of job {job} matches{hint}")
        if limit is not None and count == limit and last is not None:
            rest = client.predictions(
                job, label=label, below=below, errors=errors, name=name, after=last.index, limit=1
            )
            if next(rest, None) is not None:
                say(f"more: --after {last.index}")
    if output is not None:
        say(f"{pluralize(count, 'prediction')} written to {shown(output)}")


def _write(
    found: Iterator[Prediction], form: Format, output: str | None, *, force: bool, escape: Escape | None
) -> int:
    if form == Format.PARQUET:
        if output is None and sys.stdout.isatty():
            raise UserError("Parquet is not text: add --output FILE, or redirect stdout.")
        check_parquet()
        with opened(output or STDOUT, force=force) as file:
            return write_parquet(found, file)
    writers: dict[Format, Callable[[Iterator[Prediction], IO[str]], int]] = {
        Format.CSV: partial(write_csv, escape=escape),
        Format.JSONL: write_jsonl,
        Format.TABLE: write_table,
    }
    write = writers[form]
    if output is not None:
        with opened(output, force=force) as file, as_text(file) as text:
            return write(found, text)
    count = write(found, sys.stdout)
    sys.stdout.flush()
    return count
