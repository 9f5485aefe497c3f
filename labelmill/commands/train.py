"""`labelmill train`: train a model on a dataset."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.models.training_request import TrainingRequest
from jobs.schema import RunState
from labelmill.client import Client
from labelmill.commands.follow_run import retrain
from labelmill.commands.options import training_options
from labelmill.console.terminal import ExitCode, examples, print_data, print_json, report_errors

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "LABELMILL_MNIST_DIR=mnist/ labelmill train", "labelmill train --dataset birds --max-minutes 10"
    )
)
@report_errors
@training_options("dataset", *TrainingRequest.HOW, "seed")
def train(
    how: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Train a model on a dataset; it becomes the champion if there is none and it does not only guess.

    It learns from the training images and corrections, and is evaluated on the test images. The training runs
    in this process unless a trainer is running. MNIST is added if it is missing: from LABELMILL_MNIST_DIR,
    the cache in the state folder, or a download; `labelmill datasets add` adds other datasets. stderr says
    what was chosen.

    Ctrl-C ends the run and changes nothing. If another run on this dataset is active, the exit code is 2.
    Needs the extra `worker`.
    """
    with Client() as client:
        request = TrainingRequest.of(**{"seed": 1, **how})
        run = retrain(client, request, keep_champion=True, here=not client.trainer_is_running())
        if run.state != RunState.DONE or run.model_id is None:
            raise SystemExit(ExitCode.FAILED)
        model = client.model(run.model_id)
    if as_json:
        print_json(
            {
                "run": run.id,
                "model": model.id,
                "accuracy": model.accuracy,
                "sha256": model.sha256,
                "aliases": model.aliases,
                "verdict": run.verdict,
            }
        )
    else:
        print_data(model.id)
