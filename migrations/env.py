"""Run Alembic's migrations on the connection that `labelmill db upgrade` passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from jobs.schema import metadata
from migrations import LOCK_TIMEOUT


def _is_compared(_object: object, name: str | None, type_: str, *_: object) -> bool:
    """Return whether to compare an object with the schema.

    SQLite does not report DESC in an index, so ix_chunks_due is compared on PostgreSQL only. The schema does
    not list the partitions of `predictions`.
    """
    if type_ == "table":
        return not str(name).startswith("predictions_")
    sqlite = context.config.attributes["connection"].dialect.name == "sqlite"
    return not (sqlite and type_ == "index" and name == "ix_chunks_due")


def run() -> None:
    """Run the requested migrations in one transaction."""
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
