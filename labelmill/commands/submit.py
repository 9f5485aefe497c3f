"""`labelmill submit`: images in, a job's id out."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from jobs.errors import NotFound, UserError
from jobs.ledger.learning.models import CHAMPION
from jobs.limits import ErrorLimits
from jobs.network.references import Roots
from jobs.schema import SMALL_JOB_IMAGES, JobState
from labelmill.commands.connection import open_client
from labelmill.commands.follow_job import report_broker_unavailable, status_to_json, watch
from labelmill.commands.options import ChampionOfOption, ProjectOption, TopOption
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import (
    examples,
    exit_code_of,
    format_duration,
    pluralize,
    print_data,
    print_json,
    report_errors,
    say,
)
from producer.dry_run import dry_run as read_only
from producer.sources import Sources
from producer.sources.lines import paths_on_stdin

if TYPE_CHECKING:
    from labelmill.client import Client
    from labelmill.client.remote import RemoteClient
    from producer.submit import Submitted

app = typer.Typer(add_completion=False)

#: The latest jobs among which --dry-run looks for one with the same model.
_RECENT_JOBS: Final = 100


@app.command(
    epilog=examples(
        "labelmill submit photos/ --watch",
        "labelmill submit 'scans/**/*.png' archive.zip",
        "find . -name '*.jpg' | labelmill submit -",
        "labelmill submit photos.csv --dry-run",
        "labelmill submit s3://bucket/photos/ --by-reference",
        "labelmill submit finches/ --dataset birds",
        "labelmill submit finches/ --model 06h0w4r0rf0dkckt",
    )
)
@report_errors
def submit(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders (with everything below), globs, ZIP and TAR archives, manifests (.csv, "
            ".jsonl or .parquet), MNIST's IDX files, URLs such as s3://bucket/folder/, or - for paths and "
            "URLs on stdin, one per line.",
        ),
    ],
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    key: Annotated[
        str | None,
        typer.Option(help="Your name for this submission: the same name and content give the same job."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that classifies them. Default: the champion."),
    ] = None,
    dataset: ChampionOfOption = None,
    project: ProjectOption = None,
    by_reference: Annotated[
        bool,
        typer.Option(
            "--by-reference",
            help="Store where the images are instead of their bytes; every worker must reach them there.",
        ),
    ] = False,
    priority: Annotated[
        int | None,
        typer.Option(
            min=-100,
            max=100,
            metavar="N",
            help="Classify this job before those of a lower priority. Default: 10 for at most "
            f"{SMALL_JOB_IMAGES} images, otherwise 0.",
        ),
    ] = None,
    top: TopOption = None,
    max_errors: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Stop the job if more images than this get an error."),
    ] = None,
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Stop the job if more than this share of its images so far got an error: 0.05 is 5 %.",
        ),
    ] = None,
    min_sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Apply --max-error-rate only after this many images are done. Default: "
            f"{ErrorLimits().sample:,}.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and count the images, but store nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Submit images as one job; prints the job's id, the only word on stdout.

    The job is then committed, whether or not the broker can be reached, and keeps the model that was the
    champion. A refused or failed submission, or Ctrl-C while submitting, stores nothing. If the command is
    killed or suspended, its job fails after 120 seconds. Workers start on the first images while the rest are
    still being read.

    A source is one of these:

    - a file whose name has none of the endings below: an image, or one of MNIST's IDX files, gzip or not;
    - a folder: all images below it, by extension or without one, except hidden and SVG files and symlinks
      that lead out of it;
    - a quoted glob: ** matches any number of folders, a backslash escapes a wildcard. Symlinks must stay in
      the folder before the first wildcard;
    - an archive on a disk, .zip, .tar, .tar.gz or .tgz: all images in it;
    - a manifest, .csv, .jsonl, .ndjson or .parquet: all images that it names;
    - a URL such as s3://bucket/photos/: the object, or all images below it. Buckets need an extra, here `s3`,
      whose package also finds the credentials;
    - a single - for paths and URLs on stdin, one per line, at most 64 KB each.

    A source that does not exist, an archive that is encrypted, damaged or a bomb, and a job beyond its limits
    are refused with exit code 2. If a file from a folder, glob, archive or stdin cannot be read, it becomes
    that image's error, and stderr says how many there are.

    A job that exceeds --max-errors or --max-error-rate is `failed`: its outcomes so far are kept, and waiting
    chunks are dropped. Chunks in progress can add a few more errors.

    With --dry-run, the command prints the number of images, of duplicates (the same bytes as an earlier
    image), of unreadable images and of chunks, and the time that a job would take at the rate of the largest
    recent job with this model.
    """
    if min_sample is not None and max_error_rate is None:
        raise UserError("--min-sample needs --max-error-rate: give both.")
    if dry_run and watch_it:
        raise UserError("--dry-run submits nothing that --watch could follow: leave one of them out.")
    limits = ErrorLimits(max_errors, max_error_rate, min_sample or ErrorLimits().sample)
    with open_client() as client:
        images = client.sources(sources, stdin=paths_on_stdin())
        of_project: dict[str, Any] = {} if project is None else {"project": project}
        if dry_run:
            if model is not None:
                model = client.model_id(model, dataset=dataset)
            _report_dry_run(client, images, model, dataset, by_reference=by_reference, as_json=as_json)
            return
        with ProgressLine("submitting") as progress:
            submitted = client.submission(
                images,
                key=key,
                model=model,
                dataset=dataset,
                **of_project,
                by_reference=by_reference,
                error_limits=limits,
                priority=priority,
                top_k=top,
                on_progress=progress.update,
                on_wait=lambda job_id: say(f"waiting: job {job_id} is being submitted under this key"),
            )
        if images.skipped:
            say(f"skipped {pluralize(images.skipped, 'file')}: not images by their names")
        if submitted.new:
            _report_unreadable(images, submitted)
        else:
            say(f"the key {key!r} already has a job with the same content: this one")
        report_broker_unavailable(client, "the job waits in the ledger")
        if not as_json:
            print_data(submitted.job_id)
        status = watch(client, submitted.job_id) if watch_it else client.status(submitted.job_id)
        if as_json:
            print_json(status_to_json(status) | {"new": submitted.new})
        if watch_it:
            raise SystemExit(exit_code_of(status))


def _report_dry_run(
    client: Client | RemoteClient,
    images: Sources,
    model: str | None,
    dataset: str | None,
    *,
    by_reference: bool,
    as_json: bool,
) -> None:
    """Read the images, and print what a submission would do."""
    settings = client.settings
    with ProgressLine("reading") as progress:
        found = read_only(
            images,
            chunk_images=settings.chunk_images,
            limits=settings.job_limits,
            by_reference=Roots(settings.reference_roots) if by_reference else None,
            on_progress=progress.update,
        )
    rate = _recent_rate(client, model, dataset)
    seconds = found.images / rate if rate else None
    if as_json:
        print_json(asdict(found) | {"skipped": images.skipped, "estimated_seconds": seconds})
        return
    print_data(f"images      {found.images:,}, {found.bytes:,} bytes")
    print_data(f"duplicates  {found.duplicates:,}")
    print_data(f"unreadable  {found.unreadable:,}")
    print_data(f"chunks      {found.chunks:,}")
    time = "unknown: no job with this model is done" if seconds is None else format_duration(seconds)
    print_data(f"time        {time}")
    if images.skipped:
        say(f"skipped {pluralize(images.skipped, 'file')}: not images by their names")


def _recent_rate(client: Client | RemoteClient, model: str | None, dataset: str | None) -> float | None:
    """Return the images per second of the largest recent job with this model, or None if there is none."""
    try:
        chosen = client.model_id(model or CHAMPION, dataset=dataset)
    except NotFound:
        return None
    done = [job for job in client.jobs(limit=_RECENT_JOBS, state=JobState.DONE) if job.model == chosen]
    return max(done, key=attrgetter("total")).rate if done else None


def _report_unreadable(images: Sources, submitted: Submitted) -> None:
    """Report unreadable images now: workers may record their errors much later."""
    first = images.first_unreadable
    if first is None or first.error is None:
        return
    say(
        f"{images.unreadable:,} of {pluralize(submitted.images, 'image')} could not be read, and will get "
        f"an error; the first: {first.name}, {first.error.code}"
        + (f": {first.error.detail}" if first.error.detail else "")
    )
