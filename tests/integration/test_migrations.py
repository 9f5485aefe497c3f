"""The migrations create and remove exactly the tables that the code declares, in one transaction each."""

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
from jobs.ledger.jobs.queries import Filter, job_status, page_of_predictions
from jobs.ledger.learning.models import find_champion, find_evaluation, save_evaluation
from jobs.models.evaluation import NO_ANSWER
from jobs.schema import evaluations, jobs, metadata, models
from jobs.settings import Settings
from labelmill.client.migrating import alembic_config, open_ledger, upgrade
from labelmill.operations.metrics import LabelmillCollector
from tests.console import Home
from tests.evaluations import made_evaluation
from tests.outcomes import Outcome, best
from tests.threads import at_once

#: The migration before the one that made each answer two bytes.
BEFORE_UINT16 = "0013"

#: The migration before the one that added alternatives.
BEFORE_ALTERNATIVES = "0017"


def tables_of(ledger: Ledger) -> set[str]:
    with ledger.reading() as connection:
        names = set(sa.inspect(connection).get_table_names())
    return {name for name in names if not name.startswith("predictions_")}  # no partitions


ALL_TABLES = {table.name for table in metadata.sorted_tables} | {"alembic_version"}


@pytest.mark.fast
def test_a_ledger_is_made_from_nothing(empty_ledger):
    # Given a database without tables
    assert tables_of(empty_ledger) == set()
    with pytest.raises(LedgerNotReady, match="labelmill db upgrade"):
        empty_ledger.check()

    # When it is migrated, Then it is ready
    upgrade(empty_ledger)
    empty_ledger.check()
    assert tables_of(empty_ledger) == ALL_TABLES


@pytest.mark.fast
def test_the_migrations_make_what_the_code_declares(ledger):
    # When Alembic compares a migrated ledger with the declared tables, Then it finds no difference
    with ledger.transaction() as connection:
        command.check(alembic_config(connection))


@pytest.mark.fast
def test_a_ledger_can_be_taken_down_and_made_again(ledger, make_job):
    # Given a ledger with a job
    make_job([1])

    # When all migrations are reverted
    with ledger.transaction() as connection:
        command.downgrade(alembic_config(connection), "base")

    # Then none of our tables is left, and the check says so
    assert tables_of(ledger) == {"alembic_version"}
    with pytest.raises(LedgerNotReady):
        ledger.check()

    # And it can be created again, empty
    upgrade(ledger)
    ledger.check()
    with ledger.reading() as connection:
        assert find_champion(connection) is None


@pytest.mark.fast
def test_the_answers_of_evaluations_survive_both_ways(ledger, make_model):
    # Given the evaluation of a model with ten classes, one of its answers missing, and of one with 300
    small, large = make_model(b"small"), make_model(b"large", champion=False)
    evaluation, answers = made_evaluation([0, 9, 3], [0, 8, NO_ANSWER])
    names = tuple(map(str, range(300)))
    with ledger.transaction() as connection:
        connection.execute(models.update().where(models.c.id == large.id).values(classes=names))
        save_evaluation(connection, small.id, "a" * 64, evaluation, answers)
        save_evaluation(connection, large.id, "a" * 64, *made_evaluation([299], [299], classes=names))

    # When the ledger goes back to one byte per answer, Then the small model keeps its answers
    with ledger.transaction() as connection:
        command.downgrade(alembic_config(connection), BEFORE_UINT16)
        assert connection.scalars(sa.select(evaluations.c.answers)).all() == [b"\x00\x00\x08\x09\xff\x03"]

    # And when it is upgraded again, they are as before
    upgrade(ledger)
    with ledger.reading() as connection:
        assert find_evaluation(connection, small.id).answers == answers
        assert find_evaluation(connection, large.id) is None


@pytest.mark.fast
def test_predictions_survive_without_their_alternatives_and_get_none_again(ledger, make_job, worker):
    # Given a prediction with alternatives
    job = make_job([1])
    worker.work(job.chunks[0], [Outcome("a.png", "7", 0.5, alternatives=best("7", "1"))])

    # When the ledger goes back to the version without them, Then the view works, and the prediction is there
    with ledger.transaction() as connection:
        command.downgrade(alembic_config(connection), BEFORE_ALTERNATIVES)
        rows = connection.execute(sa.text("SELECT * FROM results")).mappings().all()
    assert [(row["name"], row["label"], "alternatives" in row) for row in rows] == [("a.png", "7", False)]

    # And when it is upgraded again, it has no alternatives
    upgrade(ledger)
    with ledger.reading() as connection:
        [found] = page_of_predictions(connection, job.id, Filter(), after=-1, limit=10)
        assert (found.label, found.alternatives) == ("7", None)
        assert connection.scalar(sa.text("SELECT count(*) FROM results WHERE alternatives IS NULL")) == 1


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_who_may_read_the_view_may_read_it_after_the_migration(ledger):
    # Given a ledger without alternatives, whose view anybody may read
    with ledger.transaction() as connection:
        command.downgrade(alembic_config(connection), BEFORE_ALTERNATIVES)
        connection.execute(sa.text("GRANT SELECT ON results TO PUBLIC"))

    # When it is upgraded, Then they still may
    upgrade(ledger)
    may = "SELECT has_table_privilege('pg_read_all_stats', 'results', 'SELECT')"
    with ledger.reading() as connection:
        assert connection.scalar(sa.text(may)) is True


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
def test_a_role_that_only_reads_cannot_read_the_secrets_of_webhooks(roles, empty_postgresql_url, settings):
    def may_read(connection, role, table):
        return connection.scalar(sa.text(f"SELECT has_table_privilege('{role}', '{table}', 'SELECT')"))

    # When the ledger is migrated, and again after somebody granted all tables
    with contextlib.closing(Ledger(empty_postgresql_url)) as ledger:
        for _ in range(2):
            upgrade(ledger)
            # Then only the other role can read them
            with ledger.transaction() as connection:
                assert not may_read(connection, "reader", "webhook_endpoints")
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


def test_a_ledger_of_an_older_version_is_refused(ledger):
    # Given a ledger of an older version
    migrated_by_another(ledger, "0000", compatible_since="0000")

    # When it is opened, Then the error names both versions and the remedy
    with pytest.raises(LedgerNotReady, match=rf"0000.*{REVISION}: run `labelmill db upgrade`"):
        ledger.check()


@pytest.mark.parametrize("compatible_since", ["9998", None])
def test_an_incompatible_newer_ledger_is_refused_and_left_as_it_is(ledger, tmp_path, compatible_since):
    # Given a deployed and an embedded ledger that a newer Labelmill migrated, and that this one cannot use
    settings = Settings(home=tmp_path / "home")
    for each in (ledger, open_ledger(settings)):
        migrated_by_another(each, "9999", compatible_since=compatible_since)

    # When the first is upgraded and the second opened, Then each error names both versions and the remedy
    with pytest.raises(LedgerNotReady, match=rf"9999.*{REVISION}: use the newer version, or restore"):
        upgrade(ledger)
    with pytest.raises(LedgerNotReady, match=rf"9999.*{REVISION}: use the newer version, or restore"):
        open_ledger(settings)
    with ledger.reading() as connection:
        assert revision(connection) == "9999"


@pytest.mark.fast
def test_a_compatible_newer_ledger_is_used_and_left_as_it_is(ledger, tmp_path):
    # Given a deployed and an embedded ledger that a newer Labelmill migrated, and that this one can use
    settings = Settings(home=tmp_path / "home")
    for each in (ledger, open_ledger(settings)):
        migrated_by_another(each, "9999", compatible_since=REVISION)

    # When the first is upgraded and the second opened, Then both can be used and keep their version
    upgrade(ledger)
    for each in (ledger, open_ledger(settings)):
        with contextlib.closing(each), each.reading() as connection:
            each.check()
            assert revision(connection) == "9999"


def test_the_migrations_since_then_leave_older_code_its_tables(empty_ledger):
    """`COMPATIBLE_SINCE` promises that code of that migration can still use the ledger."""
    # Given the tables of the oldest compatible code
    upgrade(empty_ledger, COMPATIBLE_SINCE)
    before = columns_of(empty_ledger)

    # When the ledger is migrated, Then they keep their columns, and new columns need no value
    upgrade(empty_ledger)
    assert lost_by_older_code(before, columns_of(empty_ledger)) == []


def test_what_older_code_cannot_live_with_is_found(empty_ledger):
    upgrade(empty_ledger, "0008")
    before = columns_of(empty_ledger)
    upgrade(empty_ledger, "0009")
    assert "chunks.rung_at is gone" in lost_by_older_code(before, columns_of(empty_ledger))


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


def test_the_embedded_ledger_is_made_where_it_is_needed(tmp_path):
    # Given a state folder that does not exist
    settings = Settings(home=tmp_path / "home")

    # When its ledger is opened, also a second time, Then it is ready
    for _ in range(2):
        with contextlib.closing(open_ledger(settings)) as ledger:
            ledger.check()

    # And only its owner can read it
    path = tmp_path / "home" / "ledger.sqlite3"
    assert make_url(settings.ledger).database == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


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


def test_sqlite_keeps_an_accepted_job_through_a_power_cut(tmp_path):
    with (
        contextlib.closing(open_ledger(Settings(home=tmp_path))) as ledger,
        ledger.reading() as connection,
    ):
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
