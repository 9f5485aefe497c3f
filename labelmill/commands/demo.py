"""`labelmill demo`: from nothing to classified images."""

from __future__ import annotations

import typer

from jobs.settings import Settings
from labelmill.console.terminal import examples, report_errors
from labelmill.local.training import require_tensorflow

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples("labelmill demo", "LABELMILL_MNIST_DIR=mnist/ LABELMILL_HOME=/tmp/mill labelmill demo")
)
@report_errors
def demo() -> None:
    """See it work: train on MNIST, classify 10,000 digits, look at the results.

    Starts a broker and workers unless they run, trains a model unless the champion was trained on the same
    data, submits the test images as PNG files and shows the results. If MNIST cannot be downloaded, uses a
    sample of it and says so. Writes only into the state folder (LABELMILL_HOME). Ends every process that it
    has started.
    """
    require_tensorflow("The demo", "local")
    from labelmill.local.demo import run_demo

    run_demo(Settings.load())
