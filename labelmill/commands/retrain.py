"""`labelmill retrain`: request a training run now, apart from the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from jobs.errors import LabelmillError
from jobs.models.dataset import MNIST
from labelmill.client import Client
from labelmill.commands.follow_job import report_broker_unavailable
from labelmill.commands.follow_run import exit_code_of_run, run_details_to_json, watch_run
from labelmill.commands.options import (
    ArchitectureOption,
    AugmentOption,
    MaxMinutesOption,
    ProfileOption,
    SizeOption,
    StartOption,
    TrainedOn,
)
from labelmill.console.terminal import examples, print_data, print_json, report_errors, say
from labelmill.local.stack import Stack, broker_answers
from labelmill.local.training import MAX_SEED, report_silent_trainer, require_tensorflow

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples("labelmill retrain --wait", "labelmill retrain --dataset birds --max-minutes 10")
)
@report_errors
def retrain(
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
    dataset: TrainedOn = MNIST,
    architecture: ArchitectureOption = None,
    start: StartOption = None,
    profile: ProfileOption = None,
    size: SizeOption = None,
    augment: AugmentOption = None,
    max_minutes: MaxMinutesOption = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, help="Seed of all random numbers. Left out: a new one each time."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Promote the model whatever the gate says; that is recorded.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Request a training run; prints its id.

    A trainer trains and evaluates a model, and promotes it if it is better than the dataset's champion. Each
    dataset has one run at a time. If no broker is running, --wait starts broker and trainer for this run
    alone.
    """
    with Client() as client:
        alone = client.settings.embedded_broker and not broker_answers(client.settings)
        stack = None
        if wait and alone:  # first, so that no run is requested if the stack cannot start
            require_tensorflow()
            stack = Stack(client.settings, worker=False, trainer=True)
        run_id = client.retrain(
            dataset=dataset,
            architecture=architecture,
            profile=profile,
            start=start,
            size=size,
            augment=augment,
            max_minutes=max_minutes,
            seed=seed,
            force=force,
            on_wait=report_silent_trainer,
        )
        if not as_json:
            print_data(run_id)
        if not wait:
            report_broker_unavailable(client, "the run waits in the ledger", starts="a trainer")
            if as_json:
                print_json(run_details_to_json(client, client.run(run_id)))
            return
        if stack is not None:
            with _running_for(client, run_id, stack):
                run = watch_run(client, run_id, own_stack=stack)
        else:
            run = watch_run(client, run_id)
        if as_json:
            print_json(run_details_to_json(client, run))
        raise SystemExit(exit_code_of_run(run, client.verdict_on(run_id)))


@contextmanager
def _running_for(client: Client, run_id: str, stack: Stack) -> Iterator[None]:
    """Run the stack for this run alone. Any error cancels the run: no other trainer would execute it."""
    try:
        with stack:
            say("starting a trainer")
            client.wake_trainer(run_id)
            yield
    except BaseException:
        with suppress(LabelmillError):  # it has ended, or the ledger cannot be reached
            client.cancel_run(run_id)
        raise
