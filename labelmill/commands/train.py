"""`labelmill train`: train a model on a dataset."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.dataset import MNIST
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console import examples, print_data, print_json, report_errors, say
from labelmill.migrating import open_ledger
from labelmill.training import MAX_SEED, train_with_progress
from worker.learning.recipes import MAX_SIZE, MIN_SIZE, TrainingRequest

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "LABELMILL_MNIST_DIR=mnist/ labelmill train", "labelmill train --dataset birds --max-minutes 10"
    )
)
@report_errors
def train(
    dataset: Annotated[str, typer.Option(metavar="NAME", help="The dataset, its latest version.")] = MNIST,
    architecture: Annotated[
        Literal["mlp", "cnn", "finetune"] | None,
        typer.Option(help="The network. Left out: mlp; for other datasets than mnist, cnn."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="MODEL", help="Where finetune starts. Left out: the dataset's champion."
        ),
    ] = None,
    profile: Annotated[
        Literal["quick", "long"] | None,
        typer.Option(help="How long mnist's recipes train. Left out: quick."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=MIN_SIZE,
            max=MAX_SIZE,
            help="Width and height in pixels that images are scaled to. Left out: chosen from the data.",
        ),
    ] = None,
    augment: Annotated[
        Literal["digits", "photos", "none"] | None,
        typer.Option(
            help="How images are varied: photos are mirrored, digits are not. Left out: photos if they have "
            "colours."
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="The longest training; the best model of this time counts."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of all random numbers.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Train a model on a dataset; it becomes the dataset's champion if there is none.

    It learns from the training images and all corrections, and is evaluated on the test images. MNIST comes
    from LABELMILL_MNIST_DIR, the cache in the state folder, or a download; `labelmill datasets add` adds
    other datasets.
    """
    settings = Settings.load()
    open_ledger(settings).close()
    is_digits = dataset == MNIST
    request = TrainingRequest(
        dataset=dataset,
        architecture=architecture or ("mlp" if is_digits else None),
        profile=profile or ("quick" if is_digits and architecture != "finetune" else None),
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
