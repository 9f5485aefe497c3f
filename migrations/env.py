"""Run Alembic's migrations on the connection that `labelmill db upgrade` passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from migrations import LOCK_TIMEOUT


def run() -> None:
    """Run the requested migrations in one transaction."""
    connection: Connection = context.config.attributes["connection"]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


run()
