"""`labelmill cancel`: stop a job."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.console import examples, print_json, report_errors, say
from labelmill.follow import closing_line, status_to_json

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill cancel 06h0w4r0rf0dkckt"))
@report_errors
def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Stop a job. Images that were classified keep their predictions.

    Chunks that workers have begun are given up, unless their results are just being recorded. A job with a
    key that was still being submitted stays until the next submission under that key.
    """
    with Client() as client:
        job = client.job_id(job)
        status = client.cancel(job)
    say(closing_line(status))
    if as_json:
        print_json(status_to_json(status))
