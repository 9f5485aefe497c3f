"""Open the ledger, and bring its schema up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

import migrations
from jobs.errors import LedgerNotReady
from jobs.ledger import Ledger
from jobs.ledger.database import COMPATIBLE_SINCE, REVISION, revision
from jobs.ledger.partitions import add_partitions
from jobs.settings import Settings
from migrations.bounding import bounded

if TYPE_CHECKING:
    from alembic.config import Config


#: Statements that keep secrets from roles that can only read: those that sign webhooks, and signed addresses.
_HIDE_SECRETS: Final = sa.text("""
    SELECT format('REVOKE SELECT ON %s FROM %s', pg_class.oid::regclass, acl.grantee::regrole)
    FROM pg_class, aclexplode(relacl) AS acl
    WHERE pg_class.oid IN (to_regclass('webhook_endpoints'), to_regclass('batch_urls')) AND acl.grantee <> 0
    GROUP BY pg_class.oid, acl.grantee HAVING array_agg(acl.privilege_type) = '{SELECT}'
""")


def open_ledger(settings: Settings) -> Ledger:
    """Open the ledger, ready to use. Create and migrate an embedded ledger if necessary.

    Raises LedgerNotReady if this version cannot use a deployed ledger, or an embedded one that is newer.
    Raises Unavailable.
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


def upgrade(ledger: Ledger) -> None:
    """Run the missing migrations in one transaction, and add the predictions' partitions of the next year.

    Leave a newer ledger as it is. Raises LedgerNotReady if this version cannot use it, Unavailable.
    """
    # Imported here: every command opens the ledger, but hardly any has to migrate it.
    from alembic import command

    with ledger.reading() as connection:
        found = revision(connection)
    if found is not None and found > REVISION:  # Alembic does not know that migration
        ledger.check()
        return
    with bounded(ledger), ledger.transaction() as connection:
        command.upgrade(alembic_config(connection), "head")
        add_partitions(connection)
        if not ledger.is_sqlite:
            # Not a migration: a role may be granted all tables at any time, even before they exist.
            for statement in connection.scalars(_HIDE_SECRETS).all():
                connection.exec_driver_sql(statement)
        compatible_since = sa.text("UPDATE alembic_version SET compatible_since = :since")
        connection.execute(compatible_since, {"since": COMPATIBLE_SINCE})


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for this connection; no alembic.ini is needed."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    return config
