"""`labelmill resume`: resume a paused job."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.console import examples, print_json, report_errors, say
from labelmill.follow import report_broker_unavailable, status_to_json

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill resume 06h0w4r0rf0dkckt"))
@report_errors
def resume(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Resume a paused job where it stopped."""
    with Client() as client:
        job = client.job_id(job)
        status = client.resume(job)
        say(f"job {job} is resumed: {status.done:,} of {status.total:,} images done")
        say(f"  follow it:  labelmill status {job} --watch")
        report_broker_unavailable(client, "the job waits in the ledger")
    if as_json:
        print_json(status_to_json(status))
