"""The reconciler finds what is due and what was abandoned, and only one reconciler runs at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.ledger.jobs.control import drop_leftover_chunks, end_job, hold_leftover_chunks, pause_job
from jobs.ledger.jobs.outcomes import Outcomes
from jobs.ledger.jobs.submission import ABANDONED_SECONDS, discard_job, seal_job
from jobs.ledger.locks import take_lock
from jobs.ledger.maintenance import (
    ABANDONED,
    count_due,
    end_stalled_sessions,
    fail_abandoned_jobs,
    release_expired_claims,
)
from jobs.schema import JobState, chunks, jobs
from tests.conftest import plans_of
from tests.ledger_probes import age_heartbeat, count_rows, status_of
from tests.threads import at_once


def take(ledger: Ledger, name: str, holder: str, seconds: float = 60.0) -> bool:
    with ledger.transaction() as connection:
        return take_lock(connection, name, holder, seconds=seconds)


def due(ledger: Ledger, limit: int = 100) -> int:
    with ledger.reading() as connection:
        return count_due(connection, limit=limit)


# ---- the lock -----------------------------------------------------------------------------------------


def test_many_take_a_lock_at_once_and_one_has_it(ledger_url):
    # Given eight workers that start at the same moment
    def come(name):
        with closing(Ledger(ledger_url)) as ledger:
            return [take(ledger, f"lock {number}", name) for number in range(5)]

    # When each tries to take five locks, Then each lock has one holder
    taken = at_once(come, [f"worker {number}" for number in range(8)])
    assert [sum(column) for column in zip(*taken, strict=True)] == [1] * 5


# ---- what is due --------------------------------------------------------------------------------------


def test_counting_stops_at_the_limit(ledger, make_job):
    make_job([1] * 5)
    assert [due(ledger, limit) for limit in (1, 4, 5, 6)] == [1, 4, 5, 5]


def test_what_a_stopped_job_left_behind_all_others_is_dropped_in_its_turn(
    ledger, make_job, worker, monkeypatch
):
    # Given a leftover chunk of a cancelled job behind two pending chunks, and a reconciler that checks two
    monkeypatch.setattr("jobs.ledger.jobs.control.CHECKED_CHUNKS", 2)
    other, job = make_job([1, 1]), make_job([1])
    with ledger.transaction() as connection:
        end_job(connection, job.id, JobState.CANCELLED)
        connection.execute(chunks.update().where(chunks.c.job_id == job.id).values(state="pending"))

    def tidy() -> str:
        with ledger.transaction() as connection:
            drop_leftover_chunks(connection)
            return connection.execute(sa.select(chunks.c.state).where(chunks.c.job_id == job.id)).scalar_one()

    # When one of the two is done, Then the leftover chunk is among the next two, and is dropped
    assert tidy() == "pending"
    worker.work(other.chunks[0])
    assert tidy() == "dropped"


# ---- many pending chunks ------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_look_reads_the_chunks_by_an_index_however_many_wait(ledger, make_job, worker, monkeypatch):
    # Given a ledger of many finished jobs and many pending chunks, which PostgreSQL has analyzed
    monkeypatch.setattr("jobs.ledger.jobs.control.CHECKED_CHUNKS", 100)
    worker.must_claim(make_job([1]).chunks[0], lease_seconds=-1)
    large, paused = make_job([1]).id, make_job([1]).id
    with ledger.transaction() as connection:
        pause_job(connection, paused)
        for statement in (
            "INSERT INTO jobs (id, state, model_id, created_at, touched_at)"
            " SELECT lpad(n::text, 16, '0'), 'done', (SELECT id FROM models LIMIT 1), now(), now()"
            " FROM generate_series(1, 20000) AS n",
            "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_digest, state, created_at)"
            f" SELECT lpad(n::text, 16, '0'), '{large}', n, 1, '', '', 'pending', now()"
            " FROM generate_series(1, 20000) AS n",
        ):
            connection.exec_driver_sql(statement)
    with ledger.transaction() as connection:
        connection.exec_driver_sql("ANALYZE")

    # When a reconciler runs
    sent: list[tuple[str, object]] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *told: sent.append((told[2], told[3])))
    with ledger.transaction() as connection:
        count_due(connection, limit=100)
        release_expired_claims(connection)
        drop_leftover_chunks(connection)
        hold_leftover_chunks(connection)
        asked = list(sent)
        plans = [
            "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
            for statement, parameters in asked
        ]

    # Then none of its statements scans all chunks or all jobs
    assert len(plans) == 5
    for plan in plans:
        assert "Seq Scan" not in plan, plan


# ---- abandoned jobs -----------------------------------------------------------------------------------


def test_for_abandoned_jobs_only_those_that_are_unfinished_are_read(ledger, make_job):
    # Given a ledger with an open job; a real one may hold millions of finished jobs
    make_job([1])

    # When the reconciler looks for abandoned jobs, Then it uses the index on open jobs
    [(text, plan)] = plans_of(ledger, fail_abandoned_jobs)
    assert "ix_jobs_open" in plan, f"{text}\n{plan}"


def fail_abandoned(ledger: Ledger) -> list[str]:
    with ledger.transaction() as connection:
        return fail_abandoned_jobs(connection)


def test_a_job_whose_producer_was_killed_fails(ledger, make_job, worker):
    # Given a job without a heartbeat from its producer for too long, and one image done
    job = make_job([1, 1], sealed=False)
    worker.work(job.chunks[0])
    age_heartbeat(ledger, job, ABANDONED_SECONDS + 1)

    # When the reconciler runs
    assert fail_abandoned(ledger) == [job.id]

    # Then the job has failed with the reason, keeps its predictions, and nothing of it is due
    status = status_of(ledger, job)
    assert count_rows(ledger, chunks) == 2
    assert (status.state, status.error, status.succeeded) == (JobState.FAILED, ABANDONED, 1)
    assert due(ledger) == 0
    assert fail_abandoned(ledger) == []


def test_a_producer_that_is_slow_is_left_alone(ledger, make_job):
    age_heartbeat(ledger, make_job([1], sealed=False), ABANDONED_SECONDS - 30)
    assert fail_abandoned(ledger) == []


def test_a_submitted_job_has_no_producer_to_wait_for(ledger, make_job, worker):
    # Given jobs that were submitted long ago: one running, one done, one cancelled
    waiting, done, cancelled = make_job([1]), make_job([1]), make_job([1])
    worker.work(done.chunks[0])
    with ledger.transaction() as connection:
        end_job(connection, cancelled.id, JobState.CANCELLED)
    for job in (waiting, done, cancelled):
        age_heartbeat(ledger, job, 10 * ABANDONED_SECONDS)

    # When the reconciler runs, Then none of them counts as abandoned
    assert fail_abandoned(ledger) == []


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_job_sealed_at_the_last_moment_is_not_failed(ledger, make_job, worker):
    # Given two producers without a heartbeat for too long, one of which is just sealing its job
    sealing, silent = make_job([1], sealed=False), make_job([1], sealed=False)
    for job in (sealing, silent):
        age_heartbeat(ledger, job, ABANDONED_SECONDS + 1)
    with worker.ledger.transaction() as connection:
        seal_job(connection, sealing.id, fingerprint=None)

        # When the reconciler runs before that commit, Then it does not wait, and fails only the other job
        assert fail_abandoned(ledger) == [silent.id]

    # And the sealed job is running
    assert fail_abandoned(ledger) == []
    assert status_of(ledger, sealing).state == JobState.RUNNING
    assert due(ledger) == 1


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_job_sealed_at_the_last_moment_is_not_taken_back(ledger, make_job, wait_until_blocked):
    # Given a producer that is just sealing its job
    job = make_job([1, 1], sealed=False)

    def discard():
        with ledger.transaction() as connection:
            discard_job(connection, job.id)

    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            seal_job(connection, job.id, fingerprint=None)

            # When another process discards the job, because its producer seems dead
            discarded = pool.submit(discard)
            wait_until_blocked()
        discarded.result(30)

    # Then the job is complete, with its row and its chunks
    assert (count_rows(ledger, jobs), count_rows(ledger, chunks)) == (1, 2)


# ---- sessions that hang -------------------------------------------------------------------------------


class Standing(list):
    """A column of outcomes that blocks at its second value until it is released."""

    def __init__(self, column):
        super().__init__(column)
        self.stands = threading.Event()
        self.goes_on = threading.Event()

    def __iter__(self):
        for number, value in enumerate(super().__iter__()):
            if number == 1 and not self.stands.is_set():
                self.stands.set()
                self.goes_on.wait(15)
            yield value


@contextmanager
def standing_still(worker, claim):
    """Let a worker block while it records; yield the future of its result."""
    labels = Standing(["7"] * claim.images)
    names = [f"{number}.png" for number in range(claim.images)]
    outcomes = Outcomes(names, labels, [0.75] * claim.images)
    with ThreadPoolExecutor(1) as pool:
        recorded = pool.submit(worker.finish, claim, outcomes)
        try:
            assert labels.stands.wait(30)
            yield recorded
        finally:
            labels.goes_on.set()


def end_standing(ledger):
    with ledger.transaction() as connection:
        return end_stalled_sessions(connection)


on_postgresql = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)


@on_postgresql
def test_who_stands_still_while_reading_what_it_has_changed_is_ended(ledger, make_job, worker, monkeypatch):
    # Given a session that has locked a job's row, and does not read the long result of its query
    monkeypatch.setattr("jobs.ledger.maintenance.STALLED_SESSION_SECONDS", 0.2)
    job = make_job([1])
    standing = Ledger(ledger.engine.url).engine.raw_connection()
    try:
        standing.driver_connection.execute("UPDATE jobs SET error = 'standing still'")
        standing.driver_connection.pgconn.send_query(
            b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
        )
        standing.driver_connection.pgconn.flush()
        time.sleep(0.5)

        # When the reconciler runs, Then the row is unlocked
        assert end_standing(ledger) == 1
        worker.work(job.chunks[0])
    finally:
        standing.invalidate()
    assert status_of(ledger, job).state == JobState.DONE


@on_postgresql
def test_who_has_only_just_begun_to_record_is_left_in_peace(ledger, make_job, worker):
    job = make_job([2])
    with standing_still(worker, worker.must_claim(job.chunks[0])) as recorded:
        assert end_standing(ledger) == 0
    recorded.result(30)


@on_postgresql
def test_another_ledger_of_the_same_server_is_not_ours_to_look_after(
    make_job, worker, empty_postgresql_url, monkeypatch
):
    monkeypatch.setattr("jobs.ledger.maintenance.STALLED_SESSION_SECONDS", 0)
    job = make_job([2])
    with closing(Ledger(empty_postgresql_url)) as other:
        with standing_still(worker, worker.must_claim(job.chunks[0])) as recorded:
            assert end_standing(other) == 0
        recorded.result(30)


def test_on_sqlite_there_are_no_sessions_to_end(empty_sqlite_url):
    with closing(Ledger(empty_sqlite_url)) as ledger:
        assert end_standing(ledger) == 0
