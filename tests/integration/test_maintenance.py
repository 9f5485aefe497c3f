"""The reconciler finds what is due and what was abandoned, and only one reconciler runs at a time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.ledger.jobs.control import drop_leftover_chunks, end_job, hold_leftover_chunks, pause_job
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
from tests.ledger_probes import age_heartbeat, cancel, count_rows, status_of
from tests.threads import at_once


def due(ledger: Ledger, limit: int = 100) -> int:
    with ledger.reading() as connection:
        return count_due(connection, limit=limit)


# ---- the lock -----------------------------------------------------------------------------------------


def test_many_take_a_lock_at_once_and_one_has_it(ledger_url):
    # Given eight workers that start at the same moment
    def come(name):
        taken = []
        with closing(Ledger(ledger_url)) as ledger:
            for number in range(5):
                with ledger.transaction() as connection:
                    taken.append(take_lock(connection, f"lock {number}", name, seconds=60))
        return taken

    # When each tries to take five locks, Then each lock has one holder
    taken = at_once(come, [f"worker {number}" for number in range(8)])
    assert [sum(column) for column in zip(*taken, strict=True)] == [1] * 5


# ---- what is due --------------------------------------------------------------------------------------


def test_counting_stops_at_the_limit(ledger, make_job):
    make_job([1] * 5)
    assert [due(ledger, limit) for limit in (1, 4, 5, 6)] == [1, 4, 5, 5]


def test_what_a_stopped_job_left_behind_all_others_is_dropped_in_its_turn(ledger, make_job, worker):
    # Given a leftover chunk of a cancelled job behind a pending chunk of its project
    other, job = make_job([1]), make_job([1])
    with ledger.transaction() as connection:
        end_job(connection, job.id, JobState.CANCELLED)
        connection.execute(chunks.update().where(chunks.c.job_id == job.id).values(state="pending"))

    def tidy() -> str:
        with ledger.transaction() as connection:
            drop_leftover_chunks(connection)
            return connection.execute(sa.select(chunks.c.state).where(chunks.c.job_id == job.id)).scalar_one()

    # When that is done, Then the leftover chunk is next, and is dropped
    assert tidy() == "pending"
    worker.work(other.chunks[0])
    assert tidy() == "dropped"


# ---- many pending chunks ------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_look_reads_the_chunks_by_an_index_however_many_wait(ledger, make_job, worker):
    # Given a ledger of many finished jobs and many pending chunks, which PostgreSQL has analyzed
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
        assert "Seq Scan" not in plan.replace("Seq Scan on projects", ""), plan


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


def test_only_a_job_whose_producer_was_killed_fails(ledger, make_job, worker):
    # Given producers without a heartbeat: one for too long, with one image done, and one for a while
    abandoned, slow = make_job([1, 1], sealed=False), make_job([1], sealed=False)
    worker.work(abandoned.chunks[0])
    age_heartbeat(ledger, abandoned, ABANDONED_SECONDS + 1)
    age_heartbeat(ledger, slow, ABANDONED_SECONDS - 30)

    # And jobs that were submitted long ago: one running, one done, one cancelled
    waiting, done, cancelled = make_job([1]), make_job([1]), make_job([1])
    worker.work(done.chunks[0])
    cancel(ledger, cancelled)
    for job in (waiting, done, cancelled):
        age_heartbeat(ledger, job, 10 * ABANDONED_SECONDS)

    # When the reconciler runs, Then one job has failed with the reason, and keeps its prediction
    assert fail_abandoned(ledger) == [abandoned.id]
    status = status_of(ledger, abandoned)
    assert (status.state, status.error, status.succeeded) == (JobState.FAILED, ABANDONED, 1)
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


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_only_a_session_of_this_ledger_that_stands_still_for_long_is_ended(
    ledger, make_job, worker, empty_postgresql_url, monkeypatch
):
    def end_stalled(ledger: Ledger) -> int:
        with ledger.transaction() as connection:
            return end_stalled_sessions(connection)

    # Given a session that has locked a job's row, and does not read the long result of its query
    job = make_job([1])
    standing = Ledger(ledger.engine.url).engine.raw_connection()
    try:
        standing.driver_connection.execute("UPDATE jobs SET error = 'standing still'")
        standing.driver_connection.pgconn.send_query(
            b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)"
        )
        standing.driver_connection.pgconn.flush()
        time.sleep(0.5)

        # Then it may stand still for some seconds
        assert end_stalled(ledger) == 0

        # And when these are over, the reconciler of another ledger on the same server leaves it alone
        monkeypatch.setattr("jobs.ledger.maintenance.STALLED_SESSION_SECONDS", 0.2)
        with closing(Ledger(empty_postgresql_url)) as other:
            assert end_stalled(other) == 0

        # And its own ledger's ends it, which unlocks the row
        assert end_stalled(ledger) == 1
        worker.work(job.chunks[0])
    finally:
        standing.invalidate()
    assert status_of(ledger, job).state == JobState.DONE
