"""`labelmill train`: a model from MNIST."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.settings import Settings
from labelmill.console import examples, print_data, print_json, say, tells_errors
from labelmill.migrating import open_ledger
from labelmill.training import train_with_progress

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("LABELMILL_MNIST_DIR=mnist/ labelmill train"))
@tells_errors
def train(
    seed: Annotated[int, typer.Option(min=0, help="Where chance begins.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Train a model on MNIST; it becomes the champion if there is none.

    Three epochs of all 60,000 training images, judged on the 10,000 test images. MNIST comes from
    LABELMILL_MNIST_DIR, else from the cache in the state folder, else from a download.
    """
    settings = Settings.load()
    open_ledger(settings).close()
    trained = train_with_progress(settings, seed=seed)
    model = trained.model
    say(f"{trained.verdict.reason}; test accuracy {model.accuracy:.4f}, SHA-256 {model.sha256}")
    if as_json:
        print_json(
            {
                "run": trained.run_id,
                "model": model.id,
                "accuracy": model.accuracy,
                "sha256": model.sha256,
                "aliases": model.aliases,
                "verdict": trained.verdict.reason,
            }
        )
    else:
        print_data(model.id)
