"""`labelmill demo`: the main job from nothing to a picture of its results."""

from __future__ import annotations

import typer

from jobs.settings import Settings
from labelmill.console import examples, tells_errors
from labelmill.training import need_tensorflow

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples("labelmill demo", "LABELMILL_MNIST_DIR=mnist/ LABELMILL_HOME=/tmp/mill labelmill demo")
)
@tells_errors
def demo() -> None:
    """See it work: train on MNIST, classify 10,000 digits, look at the results.

    Starts a broker and workers unless they run, trains a model unless the champion learnt from the same data,
    submits the test images as PNG files and shows the results. If MNIST cannot be downloaded, the demo uses a
    sample of it, and says so. Everything is written to the state folder (LABELMILL_HOME); every process that
    the demo started ends with it.
    """
    need_tensorflow("The demo", "local")
    from labelmill.demo import run_demo

    run_demo(Settings.load())
