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
        typer.Option("--alive", help="Check only that the main loop is running. For liveness probes."),
    ] = False,
) -> None:
    """Say whether a part of a deployment is ready, in one line, for container engines.

    Exit code 0: ready. 1: not ready. A part is ready under these conditions:

    - producer: ledger and broker answer, and this version can use the ledger;
    - beat: also, the beat on this host sent a heartbeat within 30 seconds, and its clock agrees with the
      database's;
    - webhooks: as for beat; also, one of its processes has started, and they do not keep dying;
    - trainer: as for webhooks; also, it can write one small object to the store and 4 MiB to the database's
      disk;
    - worker: as for trainer; also, it could load the champions, if there are any.

    With --alive, the part's main loop must have run within the last 60 seconds, whatever it can reach: no
    restart brings back a ledger, broker or store. The probe needs the part's LABELMILL_HOME, which two
    processes of the same part must not share.
    """
    found = (liveness if alive else readiness)(Settings.load(), part)
    word = "alive" if alive else "ready"
    print_data(f"{word if found.ready else f'not {word}'}: {printable(found.reason)}")
    raise SystemExit(ExitCode.OK if found.ready else ExitCode.FAILED)
