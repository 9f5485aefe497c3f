"""`labelmill up`: the local stack in the foreground."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from labelmill.client import Client
from labelmill.console import examples, say, tells_errors
from labelmill.stack import Stack, settings_with
from labelmill.training import need_tensorflow

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill up", "LABELMILL_HOME=/data/mill labelmill up --processes 8"))
@tells_errors
def up(
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes classify. Left out: LABELMILL_PROCESSES.")
    ] = None,
) -> None:
    """Run the local stack in the foreground: broker, workers, trainer and beat. Ctrl-C ends it all.

    What dies is started again. Unfinished jobs go on where they were.
    """
    settings = settings_with(processes)
    need_tensorflow("A worker")
    with Client(settings) as client:
        if not client.models():
            say("There is no model yet: run `labelmill train` in another terminal, or `labelmill demo`.")
    try:
        with Stack(settings, logs=None, trainer=True, beat=True) as stack:
            say(f"up in {settings.home}, {settings.processes} processes; Ctrl-C ends it")
            while True:
                stack.check()
                time.sleep(0.5)
    except KeyboardInterrupt:
        say("all ended")
