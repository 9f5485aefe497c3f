"""The migrations create exactly the tables that the code declares; older and newer ledgers are refused."""

from __future__ import annotations

import contextlib

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.engine import make_url

from jobs.errors import LedgerNotReady
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.database import COMPATIBLE_SINCE, REVISION, revision
from jobs.ledger.jobs.queries import job_status
from jobs.schema import jobs, metadata
from jobs.settings import Settings
from labelmill.client.migrating import alembic_config, open_ledger, upgrade
from labelmill.operations.metrics import LabelmillCollector
from tests.console import Home
from tests.next_migration import NEXT, become_next_version
from tests.threads import at_once

#: What a database knows of its columns, constraints, indexes and tables.
DEFINITIONS = {
    "sqlite": (
        """SELECT tables.name, columns.name, columns.type, columns."notnull", columns.dflt_value, columns.pk
        FROM sqlite_master AS tables, pragma_table_xinfo(tables.name) AS columns
        WHERE tables.type = 'table'""",
        """SELECT tables.name, keys."from", keys."table", keys."to", keys.on_delete
        FROM sqlite_master AS tables, pragma_foreign_key_list(tables.name) AS keys
        WHERE tables.type = 'table'""",
        "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'index'",
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table'",
    ),
    "postgresql": (
        """SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p') AND attnum > 0""",
        """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = to_regnamespace('public')""",
        "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        """SELECT relname, relkind, reloptions, pg_get_partkeydef(oid)
        FROM pg_class WHERE relnamespace = to_regnamespace('public') AND relkind IN ('r', 'p')""",
    ),
}


def tables_of(ledger: Ledger) -> set[str]:
    with ledger.reading() as connection:
        names = set(sa.inspect(connection).get_table_names())
    return {name for name in names if not name.startswith("predictions_")}  # no partitions


def definitions_of(ledger: Ledger) -> set[tuple[object, ...]]:
    """Return how the tables are defined, without Alembic's own and the partitions."""
    with ledger.reading() as connection:
        found = [
            tuple(row)
            for query in DEFINITIONS[connection.dialect.name]
            for row in connection.execute(sa.text(query))
        ]
    return {row for row in found if not row[0].startswith(("predictions_", "alembic_", "sqlite_"))}


@pytest.mark.fast
def test_the_migrations_make_what_the_code_declares(empty_ledger):
    # Given the definitions of the declared tables
    with empty_ledger.transaction() as connection:
        metadata.create_all(connection)
    declared = definitions_of(empty_ledger)
    with empty_ledger.transaction() as connection:
        metadata.drop_all(connection)
    assert definitions_of(empty_ledger) == set()

    # When the ledger is migrated, Then the definitions are the same
    upgrade(empty_ledger)
    assert definitions_of(empty_ledger) == declared


@pytest.fixture
def roles(empty_postgresql_url, postgresql_server):
    """Return the URL of the role `reader`, which gets all tables to read; `writer` gets them to write."""
    ledger = Ledger(empty_postgresql_url)
    with ledger.transaction() as connection:
        for role, rights in (("reader", "SELECT"), ("writer", "SELECT, INSERT, UPDATE, DELETE")):
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
            connection.exec_driver_sql(f"ALTER DEFAULT PRIVILEGES GRANT {rights} ON TABLES TO {role}")
    yield make_url(empty_postgresql_url).set(username="reader")
    with ledger.transaction() as connection:
        connection.exec_driver_sql("DROP OWNED BY reader, writer")
    ledger.close()
    for role in ("reader", "writer"):
        postgresql_server.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_role_that_only_reads_cannot_read_secrets(roles, empty_postgresql_url, settings):
    def may_read(connection, role, table):
        return connection.scalar(sa.text(f"SELECT has_table_privilege('{role}', '{table}', 'SELECT')"))

    # When the ledger is migrated, and again after somebody granted all tables
    with contextlib.closing(Ledger(empty_postgresql_url)) as ledger:
        for _ in range(2):
            upgrade(ledger)
            # Then only the other role can read them
            with ledger.transaction() as connection:
                assert not may_read(connection, "reader", "webhook_endpoints")
                assert not may_read(connection, "reader", "batch_urls")
                assert may_read(connection, "reader", "webhook_deliveries")
                assert may_read(connection, "writer", "webhook_endpoints")
                connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        upgrade(ledger)

    # And reading is enough for the exporter, and for those who wait for the migration
    as_reader = settings.model_copy(update={"ledger_url": roles.render_as_string(hide_password=False)})
    scrape = {metric.name: metric for metric in LabelmillCollector(as_reader).collect()}
    assert scrape["labelmill_ledger_up"].samples[0].value == 1
    Home(as_reader.home, as_reader.environment()).ok("jobs", "--limit", "1")


class Interruption(Exception):
    """An error in the middle of a migration."""


def test_a_migration_that_is_interrupted_leaves_nothing(empty_ledger):
    # When an error occurs after a migration and before its commit
    def upgrade_and_stumble():
        with empty_ledger.transaction() as connection:
            command.upgrade(alembic_config(connection), "head")
            raise Interruption

    with pytest.raises(Interruption):
        upgrade_and_stumble()

    # Then nothing of the migration is left, and it can run again
    assert tables_of(empty_ledger) == set()
    upgrade(empty_ledger)
    empty_ledger.check()


def migrated_by_another(ledger, number, *, compatible_since):
    """Make the ledger as another version leaves it."""
    statement = "UPDATE alembic_version SET version_num = :number, compatible_since = :since"
    with contextlib.closing(ledger), ledger.transaction() as connection:
        connection.execute(sa.text(statement), {"number": number, "since": compatible_since})


@pytest.mark.fast
@pytest.mark.parametrize("is_compatible", [True, False])
def test_a_newer_ledger_is_used_if_it_is_compatible_and_left_as_it_is(ledger, tmp_path, is_compatible):
    # Given a deployed and an embedded ledger that a newer Labelmill migrated
    settings = Settings(home=tmp_path / "home")
    for each in (ledger, open_ledger(settings)):
        migrated_by_another(each, "9999", compatible_since=REVISION if is_compatible else "9998")

    def as_expected():
        refused = pytest.raises(LedgerNotReady, match=rf"9999.*{REVISION}: use the newer version, or restore")
        return contextlib.nullcontext() if is_compatible else refused

    # When the first is upgraded and the second opened, Then both can be used, or the errors name both
    # versions and the remedy
    with as_expected():
        upgrade(ledger)
        ledger.check()
    with as_expected(), contextlib.closing(open_ledger(settings)) as embedded:
        embedded.check()

    # And the version stays
    with ledger.reading() as connection:
        assert revision(connection) == "9999"


@pytest.mark.fast
def test_a_ledger_of_the_version_before_is_upgraded(ledger, make_job, worker, monkeypatch, tmp_path):
    # Given the next version, and a ledger of this one with a classified image
    job = make_job([1])
    worker.work(job.chunks[0])
    become_next_version(monkeypatch, tmp_path, "ALTER TABLE jobs ADD COLUMN new VARCHAR(8) DEFAULT 'added'")

    # When it is opened, Then the error says what to do
    with pytest.raises(LedgerNotReady, match=rf"{REVISION}.*{NEXT}: run `labelmill db upgrade`"):
        ledger.check()

    # When it is upgraded, also a second time, Then it can be used, and the job is there
    for _ in range(2):
        upgrade(ledger)
        ledger.check()
    with ledger.reading() as connection:
        assert job_status(connection, job.id).succeeded == 1
        assert connection.scalar(sa.text("SELECT new FROM jobs")) == "added"


def test_the_migrations_since_then_leave_older_code_its_tables(empty_ledger):
    """`COMPATIBLE_SINCE` promises that code of that migration can still use the ledger."""
    # Given the tables of the oldest compatible code
    with empty_ledger.transaction() as connection:
        command.upgrade(alembic_config(connection), COMPATIBLE_SINCE)
    before = columns_of(empty_ledger)

    # When the ledger is migrated, Then they keep their columns, and new columns need no value
    upgrade(empty_ledger)
    assert lost_by_older_code(before, columns_of(empty_ledger)) == []


def test_what_older_code_cannot_live_with_is_found(ledger, monkeypatch, tmp_path):
    # Given a migration that removes a column, and adds two
    before = columns_of(ledger)
    become_next_version(
        monkeypatch,
        tmp_path,
        "ALTER TABLE locks DROP COLUMN until",
        "ALTER TABLE locks ADD COLUMN place TEXT",
        "ALTER TABLE disks ADD COLUMN duty TEXT NOT NULL DEFAULT ''",
    )

    # When the ledger is migrated, Then the removal is found, and the additions are harmless
    upgrade(ledger)
    assert lost_by_older_code(before, columns_of(ledger)) == ["locks.until is gone"]


def columns_of(ledger):
    """Return the columns of each table."""
    with ledger.reading() as connection:
        inspector = sa.inspect(connection)
        return {
            table: {column["name"]: column for column in inspector.get_columns(table)}
            for table in inspector.get_table_names()
        }


def lost_by_older_code(before, after):
    """Return what code that knows only the tables `before` cannot use any more."""
    found = []
    for table, columns in before.items():
        now = after.get(table, {})
        found += [f"{table}.{name} is gone" for name in columns if name not in now]
        for name, column in now.items():
            is_new_duty = name not in columns or columns[name]["nullable"]
            if is_new_duty and not column["nullable"] and column["default"] is None:
                found.append(f"{table}.{name} needs a value")
            if name in columns and str(column["type"]) != str(columns[name]["type"]):
                found.append(f"{table}.{name} has another type")
    return found


def test_a_statement_on_an_unmigrated_ledger_says_what_to_do(empty_ledger):
    with pytest.raises(LedgerNotReady, match="labelmill db upgrade"), empty_ledger.reading() as connection:
        job_status(connection, new_id())


def test_a_ledger_nobody_migrated_is_not_migrated_behind_ones_back(empty_ledger, tmp_path):
    # Given a deployed ledger without tables
    url = empty_ledger.engine.url.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path / "home", ledger_url=url)

    # When it is opened, Then it is not migrated: that is its owner's decision
    with pytest.raises(LedgerNotReady):
        open_ledger(settings)
    assert tables_of(empty_ledger) == set()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_on_sqlite_who_reads_and_then_writes_waits_their_turn(ledger, ledger_url, make_job):
    """A transaction that began with a read could not write if another one had written meanwhile."""
    # Given four workers that each read a number and add one to it, ten times
    job = make_job([1])

    def add_ten(_number):
        with contextlib.closing(Ledger(ledger_url)) as own:
            for _ in range(10):
                with own.transaction() as connection:
                    total = connection.scalar(sa.select(jobs.c.total))
                    connection.execute(jobs.update().values(total=total + 1))

    # When they run at once, Then each waits for the others, and no addition is lost
    at_once(add_ten, range(4))
    with ledger.reading() as connection:
        assert job_status(connection, job.id).total == 41
