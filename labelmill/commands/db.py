"""`labelmill db`: the ledger's schema."""

from __future__ import annotations

from typing import Final

import typer

from jobs.ledger import Ledger
from jobs.settings import Settings
from labelmill.console import examples, say, tells_errors
from labelmill.migrating import upgrade as run_migrations

_EXAMPLE: Final = examples("LABELMILL_LEDGER_URL=postgresql://user@host/labelmill labelmill db upgrade")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Bring the ledger's schema up to date.",
    epilog=_EXAMPLE,
)


@app.callback()
def _group() -> None:
    """Bring the ledger's schema up to date."""


@app.command(epilog=_EXAMPLE)
@tells_errors
def upgrade() -> None:
    """Run the migrations that are missing. Safe to run again, and before every start."""
    ledger = Ledger(Settings.load().ledger)
    try:
        run_migrations(ledger)
        ledger.check()
    finally:
        ledger.close()
    say(f"the ledger is up to date: {ledger.shown_url}")
