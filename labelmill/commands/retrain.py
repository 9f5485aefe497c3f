"""`labelmill retrain`: request a training run now, apart from the schedule."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.models.training_request import TrainingRequest
from labelmill.client import Client
from labelmill.commands.follow_job import report_broker_unavailable
from labelmill.commands.follow_run import exit_code_of_run, request_run, run_details_to_json
from labelmill.commands.follow_run import retrain as retrain_and_follow
from labelmill.commands.options import training_options
from labelmill.console.terminal import examples, print_data, print_json, report_errors
from labelmill.local.stack import stack_is_up

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples("labelmill retrain --wait", "labelmill retrain --dataset birds --max-minutes 10")
)
@report_errors
@training_options()
def retrain(
    how: dict[str, Any],
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Request a training run; prints its id.

    A trainer trains and evaluates a model, and promotes it if it is better than the dataset's champion. A
    trainer executes one run at a time, in the order of the requests. If a run of the same dataset is active,
    the exit code is 2. Options that you do not give are those of the dataset's schedule, otherwise chosen
    from the data.

    With --wait, the exit code is 0 if the model was promoted, 3 if it was refused, and 1 if the run produced
    no model. If no stack is up on this machine, the run is executed in this process; Ctrl-C then cancels it.
    """
    request = TrainingRequest.of(**how)
    with Client() as client:
        show_id = (lambda _run_id: None) if as_json else print_data
        if not wait:
            run = client.run(request_run(client, request))
            show_id(run.id)
            report_broker_unavailable(client, "the run waits in the ledger", starts="a trainer")
        else:
            here = client.settings.embedded_broker and not stack_is_up(client.settings)
            run = retrain_and_follow(client, request, here=here, on_request=show_id)
        if as_json:
            print_json(run_details_to_json(client, run))
        if wait:
            raise SystemExit(exit_code_of_run(run, client.verdict_on(run.id)))
