"""`labelmill worker`: run one Celery worker."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.errors import UserError
from jobs.extras import require_tensorflow
from jobs.ledger import Ledger
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.models.runtime import installed_runtimes
from labelmill.console.terminal import examples, report_errors
from labelmill.local.celery_commands import settings_with, webhooks_arguments, worker_arguments

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill worker --processes 4", "labelmill worker --trainer", "labelmill worker --webhooks"
    )
)
@report_errors
def worker(
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes classify. Default: LABELMILL_PROCESSES.")
    ] = None,
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Execute training runs instead of classifying.")
    ] = False,
    webhooks: Annotated[
        bool, typer.Option("--webhooks", help="Send webhooks instead. This needs no TensorFlow.")
    ] = False,
    loglevel: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(case_sensitive=False, help="Log this level and above."),
    ] = "info",
) -> None:
    """Run one Celery worker in the foreground, for a deployment of your own. Its log goes to stderr.

    The same as `celery -A worker.app worker` with suitable options. Broker, ledger and store must be
    available: LABELMILL_BROKER_URL, LABELMILL_LEDGER_URL, LABELMILL_STORE_URL. If the ledger is not migrated,
    the exit code is 2. Needs the extra `worker`, except with --webhooks. With the extra `slim` instead, it
    has no TensorFlow, and classifies only with compiled models.
    """
    if trainer and webhooks:
        raise UserError("Give --trainer or --webhooks, not both: start a worker for each.")
    if webhooks and processes:
        raise UserError("Give --webhooks or --processes, not both: one process sends webhooks, in threads.")
    settings = settings_with(processes)
    if trainer or not (webhooks or installed_runtimes()):
        require_tensorflow("A worker")
    ledger = Ledger(settings.ledger)
    ledger.check()
    ledger.close()
    if trainer:
        arguments = worker_arguments(queue=RETRAIN_QUEUE, processes=1, name="trainer", loglevel=loglevel)
    elif webhooks:
        arguments = webhooks_arguments(loglevel=loglevel)
    else:
        arguments = worker_arguments(
            queue=CLASSIFY_QUEUE, processes=settings.processes, name="worker", loglevel=loglevel
        )
    # In this process: a supervisor's signals reach it, and a new one would import everything again.
    from celery.bin.celery import celery

    celery(arguments, auto_envvar_prefix="CELERY")
