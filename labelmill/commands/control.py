"""`labelmill pause`, `resume` and `cancel`: control a job."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.commands.connection import open_client
from labelmill.commands.follow_job import closing_line, report_broker_unavailable, status_to_json
from labelmill.commands.options import AsJson
from labelmill.console.terminal import examples, print_json, report_errors, say

app = typer.Typer(add_completion=False)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


@app.command(epilog=examples("labelmill pause 06h0w4r0rf0dkckt"))
@report_errors
def pause(job: JobId, as_json: AsJson = False) -> None:
    """Pause a job until it is resumed; other jobs continue.

    Workers claim no more of the job. Images that a worker has already claimed, about half a second of work,
    are still recorded, and a submission in progress continues. If the job has finished, the exit code is 2.
    """
    with open_client() as client:
        job = client.job_id(job)
        status = client.pause(job)
    say(f"job {job} is paused: {status.done:,} of {status.total:,} images done")
    say(f"  resume it:  labelmill resume {job}")
    if as_json:
        print_json(status_to_json(status))


@app.command(epilog=examples("labelmill resume 06h0w4r0rf0dkckt"))
@report_errors
def resume(job: JobId, as_json: AsJson = False) -> None:
    """Resume a paused job where it stopped. If the job is not paused, the exit code is 2."""
    with open_client() as client:
        job = client.job_id(job)
        status = client.resume(job)
        say(f"job {job} is resumed: {status.done:,} of {status.total:,} images done")
        say(f"  follow it:  labelmill status {job} --watch")
        report_broker_unavailable(client, "the job waits in the ledger")
    if as_json:
        print_json(status_to_json(status))


@app.command(epilog=examples("labelmill cancel 06h0w4r0rf0dkckt"))
@report_errors
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Stop a job, paused or not. Images that were classified keep their predictions.

    Images that a worker has already claimed are still recorded. If the job is still being submitted, the
    submitting command ends with an error; if it has a key, it stays until the next submission under that key.
    If the job has finished, the exit code is 2.
    """
    with open_client() as client:
        status = client.cancel(client.job_id(job))
    say(closing_line(status))
    if as_json:
        print_json(status_to_json(status))
