"""`labelmill evaluate`: compare a job's labels with the known ones of its images."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.commands.follow_job import report_incomplete
from labelmill.commands.options import AsJson
from labelmill.console.destination import STDOUT, opened, output_option, shown
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import examples, print_value, report_errors, say
from labelmill.reporting.evaluation_lines import labelled_lines, labelled_to_json, report_left_out

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill evaluate JOB", "labelmill evaluate JOB --output report.html"))
@report_errors
def evaluate(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: AsJson = False,
    output: Annotated[
        str | None, output_option("Also write an HTML report into this file or URL; - is stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Compare a job's labels with those of its manifest, or with the folders that its images are in.

    A manifest gives them in its column label; without it, an image named photos/cat/1.jpg is a `cat`. The
    command prints accuracy, macro F1 and balanced accuracy, precision and recall by class, the confusion
    matrix and the worst mistakes. Nothing is stored, and no model is run.

    Images with an error count as wrong. If an image was corrected, its correction counts instead. A
    correction alone does not add an image, because people mostly correct mistakes. Images whose label or
    folder is not a class of the job's model are skipped: stderr says how many, and names some. Images that
    had been corrected before the model was trained are skipped, too: it may have learnt them. If no image
    remains, the exit code is 2.

    The report of --output shows the 48 worst mistakes as pictures, which needs Pillow (the extra `worker`).
    """
    with Client() as client:
        job = client.job_id(job)
        status = client.status(job)
        with ProgressLine("reading predictions") as progress:
            found = client.evaluate_job(
                job, on_progress=lambda done, total: progress.update(done, total=total)
            )
        report_incomplete(status)
        report_left_out(found)
        if output is not None:
            page = client.job_report(job, found)
            with opened(output, force=force) as file:
                file.write(page.encode())
            if output == STDOUT:  # the page is the data
                return
            say(f"report written to {shown(output)}")
    print_value({"job": job, **labelled_to_json(found)}, "\n".join(labelled_lines(found)), as_json=as_json)
