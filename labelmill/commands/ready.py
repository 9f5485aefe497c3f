"""`labelmill ready`: a health check for one process of a deployment."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.settings import Settings
from labelmill.console.terminal import ExitCode, examples, print_data, report_errors
from labelmill.operations.readiness import Part, liveness, readiness
from producer.export import printable

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill ready worker", "labelmill ready beat --alive"))
@report_errors
def ready(
    part: Annotated[Part, typer.Argument(help="The process to check.")],
    alive: Annotated[
        bool,
        typer.Option("--alive", help="Check only that its main loop runs, for those who restart it if not."),
    ] = False,
) -> None:
    """Say whether a process of a deployment is ready, in one line.

    Every part needs a ledger and a broker that answer. All but a producer must have sent a heartbeat from
    this host within 30 seconds. A worker, trainer or sender of webhooks must have started a process, and its
    processes must not keep dying. A worker or trainer must be able to write to ledger and store. A worker
    must have loaded the champions, if there are any. Exit code 0: ready. 1: not ready.

    With --alive, a worker, trainer, sender of webhooks or beat must only have run its main loop within 60
    seconds, with the same LABELMILL_HOME: no restart brings back a ledger, broker or store.
    """
    found = (liveness if alive else readiness)(Settings.load(), part)
    word = "alive" if alive else "ready"
    print_data(f"{word if found.ready else f'not {word}'}: {printable(found.reason)}")
    raise SystemExit(ExitCode.OK if found.ready else ExitCode.FAILED)
