"""One PostgreSQL for each test process, and migrated databases that one test hands on to the next."""

from __future__ import annotations

import time
from itertools import count

import psycopg
import sqlalchemy as sa

#: Lets a database note, whichever role does it, that its schema or the version of the schema is changed.
_NOTE_CHANGES = """
CREATE SCHEMA tests;
CREATE TABLE tests.changes (what text);
CREATE FUNCTION tests.note_command() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS
    'BEGIN INSERT INTO tests.changes VALUES (tg_tag); END';
CREATE FUNCTION tests.note_version() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    'BEGIN INSERT INTO tests.changes VALUES (tg_op); RETURN NULL; END';
CREATE TRIGGER note_version AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON alembic_version
    EXECUTE FUNCTION tests.note_version();
CREATE EVENT TRIGGER note_command ON ddl_command_end EXECUTE FUNCTION tests.note_command();
"""

#: Was more changed than rows? What the planner knows of the tables counts as well.
_IS_CHANGED = """
SELECT EXISTS (SELECT FROM tests.changes) OR EXISTS (
    SELECT FROM pg_statistic JOIN pg_class ON pg_class.oid = starelid
    WHERE relnamespace = 'public'::regnamespace
)
"""

#: Removes all rows. Deleting the few of a small table is much quicker than new files for it and its indexes.
#: A large table and each partition have empty files afterwards, as in a new database.
_EMPTY = """
DO $$
DECLARE name regclass; is_small boolean;
BEGIN
    SET LOCAL session_replication_role = replica;  -- in any order, whatever refers to what
    FOR name, is_small IN
        SELECT oid, pg_relation_size(oid) < 100000 AND NOT relispartition FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
        AND relname NOT IN ('alembic_version', 'projects') AND pg_relation_size(oid) > 0
    LOOP
        EXECUTE format(CASE WHEN is_small THEN 'DELETE FROM %s' ELSE 'TRUNCATE %s CASCADE' END, name);
    END LOOP;
    DELETE FROM projects WHERE projects.name NOT IN ('default', 'shadows');
    UPDATE projects SET turn = 0 * turn, intake_at = NULL, webhook_at = NULL;
    PERFORM pg_stat_reset();
END $$
"""


class PostgresqlServer:
    """The session's PostgreSQL: makes databases and drops them."""

    def __init__(self, uri: str) -> None:
        self._url = sa.make_url(uri).set(drivername="postgresql+psycopg")
        self._admin = psycopg.connect(uri, autocommit=True)
        # The tests end no power supply: what the disk has seen does not matter here, speed does.
        self._admin.execute("ALTER SYSTEM SET fsync = off")
        self._admin.execute("SELECT pg_reload_conf()")
        self._numbers = count(1)

    def url(self, database: str) -> str:
        return self._url.set(database=database).render_as_string(hide_password=False)

    def connect(self, database: str) -> psycopg.Connection:
        """Return a connection of the superuser to a database."""
        url = self._url.set(drivername="postgresql", database=database)
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)

    def create(self, *, template: str = "template1") -> str:
        """A new database's name."""
        name = f"lm{next(self._numbers)}"
        # The strategy that is faster for a template of a few megabytes on an idle server.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def rename(self, database: str) -> str:
        """Return the new name of a database, which no other process knows. Its own settings are reset."""
        name = f"lm{next(self._numbers)}"
        self.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        self.disconnect(database)
        self.execute(f"ALTER DATABASE {database} RESET ALL")
        self.execute(f"ALTER DATABASE {database} RENAME TO {name}")
        self.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        return name

    def drop(self, database: str) -> None:
        self.execute(f"DROP DATABASE {database} WITH (FORCE)")

    def disconnect(self, database: str) -> None:
        """End all connections to a database. PostgreSQL itself would look again only after 0.1 seconds."""
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        while self._admin.execute(query, (database,)).fetchone():
            time.sleep(0.001)

    def execute(self, statement: str) -> None:
        """Runs one statement as the superuser, outside of any test's database."""
        self._admin.execute(statement.encode())

    def close(self) -> None:
        self._admin.close()


class MigratedDatabases:
    """Copies of a migrated database. Emptying one takes a tenth of the time of another copy."""

    def __init__(self, server: PostgresqlServer, template: str) -> None:
        """`template`: a migrated database that is used for nothing else."""
        self._server = server
        self._template = template
        self._unused: list[str] = []
        with server.connect(template) as connection:
            connection.execute(_NOTE_CHANGES)
        server.disconnect(template)  # or it cannot be copied

    def take(self) -> str:
        """Return the name of an empty one. No process that an earlier test left behind knows it."""
        return self._unused.pop() if self._unused else self._server.create(template=self._template)

    def give_back(self, name: str) -> None:
        """Empty it for the next test. One whose schema was changed is dropped."""
        name = self._server.rename(name)
        with self._server.connect(name) as connection:
            [is_changed] = connection.execute(_IS_CHANGED).fetchone() or (True,)
            if not is_changed:
                connection.execute(_EMPTY)
        if is_changed:
            self._server.drop(name)
        else:
            self._unused.append(name)
