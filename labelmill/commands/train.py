"""`labelmill train`: train a model on a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.models.dataset import MNIST
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.client.migrating import open_ledger
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
from labelmill.local.training import MAX_SEED, train_with_progress
from worker.learning.recipes import TrainingRequest

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "LABELMILL_MNIST_DIR=mnist/ labelmill train", "labelmill train --dataset birds --max-minutes 10"
    )
)
@report_errors
def train(
    dataset: TrainedOn = MNIST,
    architecture: ArchitectureOption = None,
    start: StartOption = None,
    profile: ProfileOption = None,
    size: SizeOption = None,
    augment: AugmentOption = None,
    max_minutes: MaxMinutesOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of all random numbers.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Train a model on a dataset; it becomes the dataset's champion if there is none.

    It learns from the training images and corrections, and is evaluated on the test images. MNIST comes from
    LABELMILL_MNIST_DIR, the cache in the state folder, or a download; `labelmill datasets add` adds
    other datasets.
    """
    settings = Settings.load()
    open_ledger(settings).close()
    request = TrainingRequest(
        dataset=dataset,
        architecture=architecture,
        profile=profile,
        start=start,
        size=size,
        augment=augment,
        max_minutes=max_minutes,
        seed=seed,
    )
    with Client(settings) as client:
        recipe = client.recipe_of(request)
    trained = train_with_progress(settings, recipe, dataset=dataset)
    model = trained.model
    say(f"{trained.reason}; test accuracy {model.accuracy:.4f}, SHA-256 {model.sha256}")
    if as_json:
        print_json(
            {
                "run": trained.run_id,
                "model": model.id,
                "accuracy": model.accuracy,
                "sha256": model.sha256,
                "aliases": model.aliases,
                "verdict": trained.reason,
            }
        )
    else:
        print_data(model.id)
