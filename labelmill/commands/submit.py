"""`labelmill submit`: images in, a job's id out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.console import examples, exit_code_of, print_data, print_json, say, tells_errors
from labelmill.progress import ProgressLine
from labelmill.watching import status_to_json, watch

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill submit photos/ --watch",
        "labelmill submit 'scans/**/*.png' archive.zip",
        "find . -name '*.jpg' | labelmill submit -",
    )
)
@tells_errors
def submit(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders (with all below them), globs, ZIP archives, MNIST's IDX files, or - for "
            "paths on stdin, one a line.",
        ),
    ],
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    key: Annotated[
        str | None,
        typer.Option(help="A name of your own for this submission: said again, it gives the same job."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Submit images as one job; prints the job's id.

    The job runs whether or not anybody watches. After Ctrl-C while submitting, nothing is stored.
    """
    with Client() as client:
        images = client.sources(sources, stdin=sys.stdin)
        with ProgressLine("submitting") as progress:
            submitted = client.submission(images, key=key, on_progress=progress.update)
        if images.skipped:
            say(f"passed over {images.skipped:,} files that are no images by their name")
        if not submitted.new:
            say(f"the key {key!r} was used before, for the same content: this is its job")
        if client.broker_was_away:
            say("No broker answers: the job waits in the ledger. `labelmill up` starts one with workers.")
        if not as_json:
            print_data(submitted.job_id)
        status = watch(client, submitted.job_id) if watch_it else client.status(submitted.job_id)
        if as_json:
            print_json(status_to_json(status) | {"new": submitted.new})
        if watch_it:
            raise SystemExit(exit_code_of(status))
