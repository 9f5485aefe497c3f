"""How Alembic runs a migration: on the connection `labelmill db upgrade` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from jobs.schema import metadata

#: A migration that cannot get its lock at once gives up rather than queue in front of the workers.
LOCK_TIMEOUT = "5s"


def _is_compared(_object: object, name: str | None, type_: str, *_: object) -> bool:
    """Leave out an index whose DESC SQLite does not report; on PostgreSQL it is compared."""
    sqlite = context.config.attributes["connection"].dialect.name == "sqlite"
    return not (sqlite and type_ == "index" and name == "ix_chunks_due")


def run() -> None:
    """Runs what is asked for in one transaction."""
    connection: Connection = context.config.attributes["connection"]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        include_object=_is_compared,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
