"""Open the ledger, and bring its schema up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import migrations
from jobs.errors import LedgerNotReady
from jobs.ledger import Ledger
from jobs.ledger.partitions import add_partitions
from jobs.settings import Settings
from migrations.bounding import bounded

if TYPE_CHECKING:
    from alembic.config import Config


#: Statements that keep the secrets that sign webhooks from roles that can only read.
_HIDE_SECRETS: Final = sa.text("""
    SELECT format('REVOKE SELECT ON webhook_endpoints FROM %s', acl.grantee::regrole)
    FROM pg_class, aclexplode(relacl) AS acl
    WHERE pg_class.oid = to_regclass('webhook_endpoints') AND acl.grantee <> 0
    GROUP BY acl.grantee HAVING array_agg(acl.privilege_type) = '{SELECT}'
""")


def open_ledger(settings: Settings) -> Ledger:
    """Open the ledger, ready to use. Create and migrate an embedded ledger if necessary.

    Raises LedgerNotReady if a deployed ledger is not at this version, or an embedded one is at a newer
    version; Unavailable.
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
    """Run the missing migrations in one transaction, and add the predictions' partitions of the next year.

    Raises LedgerNotReady if a newer Labelmill has migrated the ledger, Unavailable.
    """
    # Imported here: every command opens the ledger, but hardly any has to migrate it.
    from alembic import command
    from alembic.util import CommandError

    try:
        with bounded(ledger), ledger.transaction() as connection:
            command.upgrade(alembic_config(connection), revision)
            add_partitions(connection)
            if not ledger.is_sqlite:
                # Not a migration: a role may be granted all tables at any time, even before they exist.
                for statement in connection.scalars(_HIDE_SECRETS).all():
                    connection.exec_driver_sql(statement)
    except CommandError:
        ledger.check()  # its error is clearer: it names the ledger's version and ours
        raise


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for this connection; no alembic.ini is needed."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config
