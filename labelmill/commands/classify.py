"""`labelmill classify`: the short way from files to labels."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer

from jobs.settings import Settings
from labelmill.client import Client
from labelmill.commands.follow_job import report_broker_unavailable, watch
from labelmill.commands.options import ChampionOfOption, TopOption
from labelmill.console.terminal import examples, exit_code_of, report_errors, say
from labelmill.local.stack import Stack, stack_unless_up
from producer.export import write_jsonl, write_table
from producer.sources.lines import paths_on_stdin

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill classify digit.png",
        "labelmill classify scans/ --json",
        "labelmill classify digit.png --top 3",
        "labelmill classify finch.jpg --dataset birds",
    )
)
@report_errors
def classify(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="The same sources as for `labelmill submit`.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that classifies them. Default: the champion."),
    ] = None,
    dataset: ChampionOfOption = None,
    top: TopOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Submit images, wait, and print their labels.

    If the embedded broker is not running, this command starts it with a worker of one process (extras
    `worker` and `local`), and stops them afterwards.
    """
    settings = Settings.load()
    with Client(settings) as client:
        model = client.model(model, dataset=dataset).id  # if there is no model, no stack is started
        missing = _missing_stack(settings)
        images = client.sources(sources, stdin=paths_on_stdin())
        # Started before the job is accepted: if it cannot start, there is no job.
        with missing as stack:
            if stack is not None:
                say("starting a worker for this (`labelmill up` keeps one running)")
            job_id = client.submission(images, model=model, top_k=top).job_id
            if stack is None:
                report_broker_unavailable(client, "the job waits in the ledger")
            status = watch(client, job_id, own_stack=stack)
        found = client.predictions(job_id)
        (write_jsonl if as_json else write_table)(found, sys.stdout)
    raise SystemExit(exit_code_of(status))


def _missing_stack(settings: Settings) -> AbstractContextManager[Stack | None]:
    """Return a stack to start, unless one is up, or the broker is not the embedded one."""
    if not settings.embedded_broker:
        return nullcontext()
    return stack_unless_up(settings.model_copy(update={"processes": 1}))
