"""`labelmill pause`: pause a job."""

from __future__ import annotations

from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.console import examples, print_json, report_errors, say
from labelmill.follow import status_to_json

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill pause 06h0w4r0rf0dkckt"))
@report_errors
def pause(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Pause a job until it is resumed; other jobs continue.

    Chunks that workers have begun are still recorded.
    """
    with Client() as client:
        job = client.job_id(job)
        status = client.pause(job)
    say(f"job {job} is paused: {status.done:,} of {status.total:,} images done")
    say(f"  resume it:  labelmill resume {job}")
    if as_json:
        print_json(status_to_json(status))
