"""On PostgreSQL a purge removes a whole week of predictions; readers do not wait for an upgrade."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from jobs import ids
from jobs.errors import Unavailable
from jobs.ids import id_seconds
from jobs.ledger import Ledger
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.queries import page_of_predictions
from jobs.ledger.partitions import Partition, empty_partition, partitions
from jobs.schema import jobs, predictions
from labelmill.client.migrating import upgrade
from labelmill.client.purging import Purge, Purged
from migrations.bounding import BOUND
from tests.conftest import Job
from tests.ledger_probes import rows_of

pytestmark = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)

DAY = 86_400
WEEK = 7 * DAY


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Return a function: after `at(days)`, new ids are as if made that many days from now."""
    now = time.time_ns()
    yield lambda days: monkeypatch.setattr(ids.time, "time_ns", lambda: now + int(days * DAY * 1e9))
    monkeypatch.undo()


@pytest.fixture
def finished(ledger, make_job, worker, at) -> Callable[..., Job]:
    """Return a function: `finished(8, 7)` makes a job in 8 days, of four images, that finished 7 days ago."""

    def finished(created: float, ago: float) -> Job:
        at(created)
        job: Job = make_job([4])
        worker.work(job.chunks[0])
        with ledger.transaction() as connection:
            ended = sa.func.now() - sa.func.make_interval(0, 0, 0, ago)
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(finished_at=ended))
        return job

    return finished


def purge(ledger: Ledger, store: Any, days: float) -> Purged:
    one = Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None)
    one.whole_jobs(days=days)
    return one.purged


def dead_rows(ledger: Ledger) -> int:
    """Return how many rows of all partitions were deleted, and wait for a vacuum."""
    with ledger.reading() as connection:
        connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        deleted = "SELECT sum(n_tup_del) FROM pg_stat_user_tables WHERE relname LIKE 'predictions%'"
        return int(connection.scalar(sa.text(deleted)) or 0)


@contextmanager
def notes_of(ledger: Ledger) -> Iterator[list[str]]:
    """Yield a list to which PostgreSQL adds what it notes about each statement."""
    notes: list[str] = []
    with ledger.engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.add_notice_handler(lambda note: notes.append(note.message_primary))

    def ask(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET LOCAL client_min_messages = debug1")

    sa.event.listen(ledger.engine, "begin", ask)
    yield notes
    sa.event.remove(ledger.engine, "begin", ask)


def constraints_of(ledger: Ledger, table: str) -> list[str | None]:
    """Return the names of the table's check constraints."""
    with ledger.reading() as connection:
        return [each["name"] for each in sa.inspect(connection).get_check_constraints(table)]


def test_a_week_whose_jobs_are_all_old_is_removed_at_once(ledger, store, finished):
    # Given two old jobs of one week, and one of another week that is not old enough
    old = [finished(8, ago=40), finished(8.001, ago=31)]
    other = finished(18, ago=20)

    # When old jobs are purged, Then they are gone, nothing is left to vacuum, and the other is there
    assert purge(ledger, store, days=30).predictions == 8
    assert [rows_of(ledger, job) for job in old] == [(0, 0, 0), (0, 0, 0)]
    assert dead_rows(ledger) == 0
    assert rows_of(ledger, other) == (1, 1, 4)


def test_rows_outlive_their_job_until_the_rest_of_the_week_is_old(ledger, store, finished):
    # Given a job that is old enough, and one of the same week that will be soon
    old, young = finished(8, ago=31), finished(8.001, ago=25)

    # When old jobs are purged, Then the old one is gone, and its rows wait where nobody sees them
    assert purge(ledger, store, days=30).jobs == 1
    assert rows_of(ledger, old) == (0, 0, 4)
    with ledger.reading() as connection:
        assert page_of_predictions(connection, old.id, Filter(), after=-1, limit=10) == []
        assert connection.scalar(sa.text("SELECT count(*) FROM results")) == 4

    # And when the other one is old enough, too, all are removed at once
    purge(ledger, store, days=24)
    assert (rows_of(ledger, old), rows_of(ledger, young), dead_rows(ledger)) == ((0, 0, 0), (0, 0, 0), 0)


def test_a_partition_that_has_a_job_again_is_not_emptied(ledger, finished):
    job = finished(8, ago=1)
    with ledger.transaction() as connection:
        [partition] = [each for each in partitions(connection) if each.holds(job.id)]
        empty_partition(connection, partition)
    assert rows_of(ledger, job) == (1, 1, 4)


def test_a_purge_does_not_wait_for_those_who_read(ledger, store, finished):
    # Given a reader that holds a week's partition
    job = finished(8, ago=40)
    with ledger.engine.connect() as reader:
        reader.execute(sa.select(predictions).where(predictions.c.job_id == job.id))

        # When its job is purged, Then the job is gone, and its rows are there
        purge(ledger, store, days=30)
        assert rows_of(ledger, job) == (0, 0, 4)

    # And the next purge removes them
    purge(ledger, store, days=30)
    assert rows_of(ledger, job) == (0, 0, 0)


# ---- new partitions -----------------------------------------------------------------------------------


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function: after `set_clock(days)`, it is that many days from now."""
    now = time.time()
    return lambda days: monkeypatch.setattr(time, "time", lambda: now + days * DAY)


def all_partitions(ledger: Ledger) -> list[Partition]:
    with ledger.reading() as connection:
        return partitions(connection)


def test_there_are_partitions_for_a_year_after_each_upgrade(ledger, set_clock):
    for days in (35, 280, 600):
        set_clock(days)
        for _ in range(2):
            upgrade(ledger)
        found = all_partitions(ledger)
        assert all(one.beyond == other.first for one, other in pairwise(found))
        assert 52 * WEEK < id_seconds(found[-1].beyond) - time.time() <= 53 * WEEK


def test_adding_partitions_does_not_read_the_default_partition(ledger, finished, set_clock):
    # Given a job whose week has no partition, one of a producer with a wrong clock, and the constraint that a
    # killed upgrade has left
    before = all_partitions(ledger)
    wrong, late = finished(3000, ago=0), finished(730, ago=0)
    set_clock(730)
    left = f"ALTER TABLE predictions_default ADD CONSTRAINT {BOUND} CHECK (job_id < '1') NOT VALID"
    with ledger.transaction() as connection:
        connection.execute(sa.text(left))

    # When the ledger is upgraded
    with notes_of(ledger) as notes:
        upgrade(ledger)

    # Then there are partitions from some weeks later on, PostgreSQL knew without reading that these rows do
    # not belong to them, and no constraint is left
    added = all_partitions(ledger)[len(before) :]
    assert len(added) == 53 - 5
    assert all(one.beyond == other.first for one, other in pairwise(added))
    assert all(late.id < each.first < wrong.id for each in added)
    implied = (
        'updated partition constraint for default partition "predictions_default" is implied by existing '
        "constraints"
    )
    assert notes.count(implied) == len(added)
    assert constraints_of(ledger, "predictions_default") == []
    assert [rows_of(ledger, job) for job in (wrong, late)] == [(1, 1, 4), (1, 1, 4)]


@pytest.mark.parametrize("days", [730, 3000], ids=["as late", "of a wrong clock"])
def test_rows_that_are_recorded_during_an_upgrade_are_kept(
    ledger, finished, set_clock, make_job, worker, wait_until_blocked, at, days
):
    # Given another job without a partition, and one of now: half of it is recorded while the other's rows are
    # read, and the rest while partitions are added
    finished(days, ago=0)
    at(730)
    set_clock(730)
    job = make_job([4, 4])
    rest: list[Future[None]] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "VALIDATE" in statement:
            executor.submit(worker.work, job.chunks[0]).result(timeout=5)
        if "ATTACH" in statement and not rest:
            rest.append(executor.submit(worker.work, job.chunks[1]))
            wait_until_blocked()

    # When the ledger is upgraded meanwhile, Then all its rows are there
    with ThreadPoolExecutor() as executor:
        sa.event.listen(ledger.engine, "after_cursor_execute", note)
        upgrade(ledger)
        sa.event.remove(ledger.engine, "after_cursor_execute", note)
        rest[0].result()
    assert rows_of(ledger, job) == (1, 2, 8)


def test_an_upgrade_that_fails_leaves_no_constraint(ledger, finished, set_clock):
    # Given a row without a partition, and somebody who reads predictions for longer than an upgrade waits
    finished(730, ago=0)
    set_clock(730)
    with ledger.engine.connect() as reader:
        reader.execute(sa.text("SET idle_in_transaction_session_timeout = 0"))

        # When the ledger is upgraded, Then it fails
        def read(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if "VALIDATE" in statement:
                reader.execute(sa.text("SELECT count(*) FROM predictions"))

        sa.event.listen(ledger.engine, "after_cursor_execute", read)
        with pytest.raises(Unavailable, match="lock timeout"):
            upgrade(ledger)
        sa.event.remove(ledger.engine, "after_cursor_execute", read)

    # And the next one succeeds, and leaves no constraint
    upgrade(ledger)
    assert constraints_of(ledger, "predictions_default") == []
