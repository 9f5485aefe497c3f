"""`labelmill purge`: remove one finished job, or what old jobs do not need."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.filesize import decimal

from jobs.errors import UserError
from jobs.ledger.api.audit import AUDIT_DAYS
from jobs.limits import MAX_DAYS
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from labelmill.client import Client
from labelmill.client.purging import Purge, Purged
from labelmill.commands.options import AsJson
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import examples, pluralize, print_json, report_errors, say

app = typer.Typer(add_completion=False)

#: How long payloads are kept by default: long enough to look at errors and retry them.
_PAYLOAD_DAYS: Final = 7.0


@app.command(
    epilog=examples(
        "labelmill purge --payloads 7 --dry-run",
        "labelmill purge --payloads 7 --jobs 365",
        "labelmill purge 06h0w4r0rf0dkckt",
    )
)
@report_errors
def purge(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]",
            show_default=False,
            help="Remove only this job and its predictions, whenever it finished.",
        ),
    ] = None,
    payloads: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MAX_DAYS,
            metavar="DAYS",
            help="Remove the images of jobs that finished more than this many days ago; predictions stay. "
            f"{_PAYLOAD_DAYS:g} if no option is given.",
        ),
    ] = None,
    jobs: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=MAX_DAYS,
            metavar="DAYS",
            help="Remove jobs that finished more than this many days ago, with their predictions.",
        ),
    ] = None,
    strays: Annotated[
        bool,
        typer.Option("--strays", help="Remove only what no job needs: see below."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove one finished job, or what old jobs no longer need.

    Nothing else removes a submitted job. Beat runs this command every day: with --strays, or with the days
    of LABELMILL_KEEP_PAYLOADS_DAYS and LABELMILL_KEEP_JOBS_DAYS if one is set. It is safe while workers run.
    If it is interrupted, run it again. Each purge is a row of the table `purges`.

    After --payloads, predictions stay, but the jobs cannot be retried. After --jobs or JOB, the job is gone,
    and its key is free again. On PostgreSQL, predictions that --jobs removes may stay on the disk for a
    while, but no command shows them.

    Without JOB, the command also removes what no job needs: payloads, files and image copies, older than a
    day, that an interrupted command left behind, the rows of webhook messages that were sent or given up
    more than 30 days ago, and entries of the audit that are older than 90 days.
    """
    by_age = payloads is not None or jobs is not None
    if job is not None and (by_age or strays):
        raise UserError("Give JOB, or options for all old jobs, not both.")
    if strays and by_age:
        raise UserError("--payloads and --jobs remove strays, too: leave out --strays.")
    if job is None and not by_age and not strays:
        payloads = _PAYLOAD_DAYS
    with Client() as client, ProgressLine("purging") as progress:
        store = Store(client.settings.store)
        if not dry_run:
            check_store(client.ledger, store)  # otherwise jobs would count as purged while their images stay
        run = Purge(
            client.ledger,
            store,
            dry_run=dry_run,
            on_progress=lambda purged: progress.update(
                run.done, note=f"{decimal(purged.bytes)}, {pluralize(purged.predictions, 'prediction')}"
            ),
        )
        try:
            if job is not None:
                run.one_job(client.job_id(job))
            else:
                if jobs is not None:
                    run.whole_jobs(days=jobs)
                if payloads is not None:
                    run.payloads(days=payloads)
                run.strays()
                run.deliveries()
                run.audit()
        finally:
            run.record({"job": job, "payloads": payloads, "jobs": jobs})
    for line in _summary(run.purged, dry_run=dry_run):
        say(line)
    if as_json:
        print_json(asdict(run.purged) | {"dry_run": dry_run})


def _summary(purged: Purged, *, dry_run: bool) -> list[str]:
    removed = "to remove" if dry_run else "removed"
    lines = []
    if purged.jobs:
        predictions = pluralize(purged.predictions, "prediction")
        lines.append(f"{removed}: {pluralize(purged.jobs, 'job')} with {predictions}")
    if purged.payloads or purged.strays:
        strays = f" and {purged.strays:,} left over from interrupted commands" if purged.strays else ""
        jobs = pluralize(purged.payloads, "job")
        lines.append(f"{removed}: the payloads of {jobs}{strays}, {decimal(purged.bytes)}")
    if purged.copies:
        copies = pluralize(purged.copies, "copy", "copies")
        lines.append(f"{removed}: {copies} of images without a correction")
    if purged.deliveries:
        lines.append(f"{removed}: {pluralize(purged.deliveries, 'webhook')} sent more than 30 days ago")
    if purged.audit:
        entries = pluralize(purged.audit, "entry", "entries")
        lines.append(f"{removed}: {entries} of the audit that are older than {AUDIT_DAYS} days")
    if purged.in_work:
        lines.append(f"kept: {pluralize(len(purged.in_work), 'job')} that a worker is still processing")
    return lines or ["nothing is old enough to be removed"]
