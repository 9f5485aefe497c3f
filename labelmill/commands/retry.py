"""`labelmill retry`: resubmit the images of a job that got no label."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.commands.connection import open_client
from labelmill.commands.follow_job import report_broker_unavailable, status_to_json, watch
from labelmill.commands.options import AsJson
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import examples, exit_code_of, print_data, print_json, report_errors, say

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill retry 06h0w4r0rf0dkckt --watch", "labelmill retry JOB --failed"))
@report_errors
def retry(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job that has finished.")],
    failed: Annotated[
        bool,
        typer.Option(
            "--failed", help="Only images that got an error, not those that a stopped job never reached."
        ),
    ] = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the new job to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Resubmit the images of a job that got no label; prints the new job's id.

    The job must have finished. The new job uses the same model, so its predictions complete those of the
    first job. It has no key and no error limits. Images by reference are read again. An image that could not
    be read when it was submitted gets its error again, because its bytes were never stored.

    If the job was stopped before all its images were read, the rest is read now. If that is not possible, or
    a worker still has one of the job's chunks, or its payloads are purged, the exit code is 2. If there is
    nothing to retry, nothing is printed (with --json, null), and the exit code is 0.
    """
    with open_client() as client:
        job = client.job_id(job)
        with ProgressLine("submitting again") as progress:
            submitted = client.retry(job, failed_only=failed, on_progress=progress.update)
        if submitted is None:
            status = client.status(job)
            if failed and status.done < status.total:
                say(
                    f"job {job} has no error to retry, but {status.total - status.done:,} images that it "
                    "never reached: leave out --failed"
                )
            else:
                say(f"job {job} has nothing to retry")
            if as_json:
                print_json(None)
            return
        report_broker_unavailable(client, "the job waits in the ledger")
        if not as_json:
            print_data(submitted.job_id)
        status = watch(client, submitted.job_id) if watch_it else client.status(submitted.job_id)
    if as_json:
        print_json(status_to_json(status))
    if watch_it:
        raise SystemExit(exit_code_of(status))
