"""`labelmill db`: the ledger's schema."""

from __future__ import annotations

from typing import Final

import typer

from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage import store_identity
from jobs.storage.store import Store
from labelmill.client.migrating import upgrade as run_migrations
from labelmill.console.terminal import examples, report_errors, say

_EXAMPLE: Final = examples("LABELMILL_LEDGER_URL=postgresql://user@host/labelmill labelmill db upgrade")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Migrate the ledger, or record its object store.",
    epilog=_EXAMPLE,
)


@app.command(epilog=_EXAMPLE)
@report_errors
def upgrade() -> None:
    """Run the missing migrations. It is safe to run this again, and before every start.

    On PostgreSQL, it also adds partitions for a year, and no longer lets read-only roles read the webhook
    secrets. The embedded ledger is migrated automatically.
    """
    ledger = Ledger(Settings.load().ledger)
    try:
        run_migrations(ledger)
        ledger.check()
    finally:
        ledger.close()
    say(f"the ledger is up to date: {ledger.shown_url}")


@app.command(epilog=examples("LABELMILL_STORE_URL=s3://bucket/labelmill labelmill db adopt-store"))
@report_errors
def adopt_store() -> None:
    """Record that the ledger's files are in the store that LABELMILL_STORE_URL names.

    Submitting to a store other than the recorded one is refused. Use this only after the store was moved or
    replaced. Copy the files first, models above all: jobs cannot go on without their payloads and models.
    """
    settings = Settings.load()
    ledger = Ledger(settings.ledger)
    try:
        ledger.check()
        store = Store(settings.store)
        store_identity.adopt_store(ledger, store)
    finally:
        ledger.close()
    say(f"the ledger's files are in {store_identity.describe_store(store)}")
