"""`labelmill train`: train a model on MNIST."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.settings import Settings
from labelmill.console import examples, print_data, print_json, report_errors, say
from labelmill.migrating import open_ledger
from labelmill.training import MAX_SEED, train_with_progress
from worker.learning.recipes import recipe_for

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("LABELMILL_MNIST_DIR=mnist/ labelmill train"))
@report_errors
def train(
    architecture: Annotated[Literal["mlp", "cnn"], typer.Option(help="The network.")] = "mlp",
    profile: Annotated[Literal["quick", "long"], typer.Option(help="How long it is trained.")] = "quick",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of all random numbers.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Train a model on MNIST; it becomes the champion if there is none.

    It learns from the training images and all corrections, and is evaluated on the 10,000 test images. MNIST
    comes from LABELMILL_MNIST_DIR, the cache in the state folder, or a download.
    """
    settings = Settings.load()
    open_ledger(settings).close()
    trained = train_with_progress(settings, recipe_for(architecture, profile, seed=seed))
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
