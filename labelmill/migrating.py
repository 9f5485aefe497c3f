"""Opening the ledger, and bringing its schema up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

import migrations
from jobs.errors import LedgerNotReady
from jobs.ledger import Ledger
from jobs.settings import Settings

if TYPE_CHECKING:
    from alembic.config import Config


def open_ledger(settings: Settings) -> Ledger:
    """The ledger, ready to use. The embedded one is made and migrated where needed: it is nobody else's.

    Raises LedgerNotReady where a deployed one is not at this version, or the embedded one at a newer one;
    Unavailable.
    """
    ledger = Ledger(settings.ledger)
    try:
        ledger.check()
    except LedgerNotReady:
        if not settings.embedded_ledger:
            ledger.close()
            raise
        try:
            upgrade(ledger)
        except LedgerNotReady:
            ledger.close()
            raise
    return ledger


def upgrade(ledger: Ledger, revision: str = "head") -> None:
    """Runs the migrations that are missing, in one transaction. Raises LedgerNotReady where a newer Labelmill
    has migrated it, Unavailable.
    """
    # Imported where it is needed: every command opens the ledger, hardly one has to migrate it.
    from alembic import command
    from alembic.util import CommandError

    try:
        with ledger.transaction() as connection:
            command.upgrade(alembic_config(connection), revision)
    except CommandError:
        ledger.check()  # says it better: of which version the ledger is, and of which we are
        raise


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for this connection; no alembic.ini is needed."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config
