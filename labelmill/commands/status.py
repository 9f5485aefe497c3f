"""`labelmill status`: show the progress of a job."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.ledger.jobs.queries import JobStatus
from labelmill.commands.connection import open_client
from labelmill.commands.follow_job import format_state, status_to_json, watch
from labelmill.commands.options import AsJson
from labelmill.console.tables import field_lines
from labelmill.console.terminal import (
    examples,
    exit_code_of,
    format_time,
    print_value,
    report_errors,
)
from producer.export import printable

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill status 06h0w4r0rf0dkckt --watch", "labelmill status JOB --json"))
@report_errors
def status(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a job: counts, rate, time left, and how long its oldest chunk has waited.

    With --watch, the command follows the job until it ends, even through ledger outages of up to two minutes.
    """
    with open_client() as client:
        job = client.job_id(job)
        found = watch(client, job) if watch_it else client.status(job)
    print_value(status_to_json(found), _format_status(found), as_json=as_json)
    if watch_it:
        raise SystemExit(exit_code_of(found))


def _format_status(status: JobStatus) -> str:
    fields = [
        ("job", status.id),
        ("state", format_state(status) + (f": {printable(status.error)}" if status.error else "")),
        ("model", status.model),
        *([("key", printable(status.key))] if status.key is not None else []),
        *([("retry of", status.retry_of)] if status.retry_of else []),
        ("images", f"{status.done:,} of {status.total:,} done"),
        ("succeeded", f"{status.succeeded:,}"),
        ("failed", f"{status.failed:,}"),
        ("rate", f"{status.rate:,.0f} images/s" if status.rate else "-"),
    ]
    if not status.finished:
        eta, waiting = status.eta_seconds, status.oldest_waiting_seconds
        fields += [
            ("time left", f"{eta:,.0f} s" if eta is not None else "-"),
            ("oldest waiting", f"{waiting:,.0f} s" if waiting is not None else "-"),
        ]
    for what, moment in [
        ("created", status.created_at),
        ("submitted", status.submitted_at),
        ("started", status.started_at),
        ("finished", status.finished_at),
    ]:
        fields.append((what, format_time(moment)))
    if status.purged_at is not None:
        fields.append(("payloads", f"removed {format_time(status.purged_at)}"))
    return "\n".join(field_lines(*fields))
