"""Counters count each event once, in the transaction in which it happens, and are kept after a purge."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa

from jobs.errors import ErrorCode
from jobs.ids import new_id
from jobs.ledger import Ledger, counters
from jobs.ledger.counters import BUCKETS, SHARDS, AttemptEnd, CounterName, bucket_of, count, totals
from jobs.ledger.jobs.claims import Reason, claimed_by, claimed_under, release_claims
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.submission import seal_job
from jobs.ledger.learning.runs import (
    FailureDetector,
    cancel_run,
    claim_run,
    end_lost_runs,
    fail_run,
    interrupt_runs_of,
    request_run,
)
from jobs.schema import JobState, RunState, db_now, jobs, training_runs
from jobs.schema import counters as table
from labelmill.client.purging import Purge
from tests.ledger_probes import count_rows
from tests.outcomes import Outcome


def counted(ledger: Ledger, name: CounterName) -> dict[str, float]:
    """Return the sums of one counter by label."""
    with ledger.reading() as connection:
        return {label: value for (each, label), value in totals(connection).items() if each == name}


def attempts(ledger: Ledger) -> dict[str, float]:
    return counted(ledger, CounterName.ATTEMPTS)


# ---- images and attempts ------------------------------------------------------------------------------


def test_outcomes_are_counted_by_what_came_of_the_image_and_stay_when_the_job_goes(
    ledger, store, make_job, worker
):
    # Given two chunks, when their outcomes are recorded
    job = make_job([3, 2])
    worker.work(job.chunks[0])
    bad = [Outcome("a", None, None, ErrorCode.CORRUPT), Outcome("b", None, None, ErrorCode.QUARANTINED)]
    worker.work(job.chunks[1], bad)

    # Then each image counts under its code, and each attempt and the job under how they ended
    assert counted(ledger, CounterName.IMAGES) == {"ok": 3, "corrupt": 1, "quarantined": 1}
    assert attempts(ledger) == {"done": 2}
    assert counted(ledger, CounterName.JOBS) == {"done": 1}

    # And so it stays when the job is purged
    Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None).whole_jobs(days=-1)
    assert count_rows(ledger, jobs) == 0
    assert counted(ledger, CounterName.IMAGES) == {"ok": 3, "corrupt": 1, "quarantined": 1}
    assert counted(ledger, CounterName.JOBS) == {"done": 1}


def test_every_end_of_an_attempt_is_counted_apart(ledger, make_job, worker):
    # Given attempts that end in every possible way
    job = make_job([1] * 6)
    worker.crash(worker.must_claim(job.chunks[0]))
    worker.crash(worker.must_claim(job.chunks[0]), Reason.TIMED_OUT)
    worker.release(worker.must_claim(job.chunks[1]))
    worker.release(worker.must_claim(job.chunks[1]), Reason.UNAVAILABLE)
    worker.must_claim(job.chunks[2], lease_seconds=-1)
    worker.must_claim(job.chunks[3])
    with ledger.transaction() as connection:
        release_claims(connection, claimed_by(worker.name), Reason.CRASHED, "it died")
        # A claim whose COMMIT was never made
        release_claims(connection, claimed_under(new_id()), Reason.UNAVAILABLE, "no ledger")
    worker.work(job.chunks[4])
    worker.must_claim(job.chunks[5])

    # Then each is counted once, by how it ended, and an unfinished attempt is not counted
    assert attempts(ledger) == {"crashed": 3, "released": 2, "expired": 1, "done": 1}


def test_jobs_are_counted_once_whatever_comes_after_their_end(ledger, make_job, worker):
    # Given a job that is cancelled while a worker has a chunk, and one that is sealed after all is done
    cancelled = make_job([1])
    claim = worker.must_claim(cancelled.chunks[0])
    for _ in range(2):
        with ledger.transaction() as connection:
            end_job(connection, cancelled.id, JobState.CANCELLED)
    worker.finish(claim)
    early = make_job([1], sealed=False)
    worker.work(early.chunks[0])
    with ledger.transaction() as connection:
        seal_job(connection, early.id, fingerprint=None)

    # Then each is counted once
    assert counted(ledger, CounterName.JOBS) == {"cancelled": 1, "done": 1}


def test_a_transaction_that_rolls_back_counts_nothing(ledger):
    # Given a transaction that counts and then fails
    def stumble() -> None:
        with ledger.transaction() as connection:
            count(connection, {(CounterName.IMAGES, "ok"): 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()

    # Then nothing of it is counted, not even by the next transaction
    with ledger.transaction() as connection:
        count(connection, {(CounterName.IMAGES, "corrupt"): 1})
    assert counted(ledger, CounterName.IMAGES) == {"corrupt": 1}


# ---- time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, "0.1"), (0.1, "0.1"), (0.11, "0.25"), (60.0, "60"), (60.1, "+Inf")]
)
def test_a_chunk_falls_into_the_least_bucket_that_holds_it(seconds, bucket):
    assert bucket_of(seconds) == bucket
    assert list(BUCKETS) == sorted(BUCKETS)


# ---- training runs ------------------------------------------------------------------------------------


def new_run(ledger: Ledger, *, claim: bool = True) -> str:
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        if claim:
            assert claim_run(connection, run_id, owner="trainer") is not None
    return run_id


def test_training_runs_are_counted_by_how_they_ended(ledger):
    # Given runs that fail, are cancelled, are told to stop, and lose their trainer
    with ledger.transaction() as connection:
        request_run(connection, new_id(), recipe={})
        claim = claim_run(connection, connection.scalar(sa.select(training_runs.c.id)), owner="trainer")
        assert claim is not None
        fail_run(connection, claim, "no data")
    cancelled = new_run(ledger, claim=False)
    with ledger.transaction() as connection:
        cancel_run(connection, cancelled)
    new_run(ledger)
    with ledger.transaction() as connection:
        interrupt_runs_of(connection, ["trainer"], error="stopped")
        interrupt_runs_of(connection, ["trainer"], error="stopped")
    new_run(ledger)
    with ledger.transaction() as connection:
        connection.execute(training_runs.update().values(lease_until=db_now(-1)))
        detector = FailureDetector(itertools.count(0, 2).__next__)
        for _ in range(9):
            end_lost_runs(connection, detector)

    # Then each is counted once
    assert counted(ledger, CounterName.TRAINING_RUNS) == {
        RunState.FAILED: 1,
        RunState.CANCELLED: 1,
        RunState.INTERRUPTED: 2,
    }


# ---- concurrency --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_two_that_note_in_other_orders_lock_in_one(ledger, new_worker, wait_until_blocked, monkeypatch):
    # Given shared rows, the middle one of which is locked
    monkeypatch.setattr(counters, "SHARDS", 1)
    names = [f"n{number}" for number in range(8)]
    with ledger.transaction() as connection:
        count(connection, {(CounterName.IMAGES, name): 1 for name in names})

    def work(order: list[str]) -> None:
        with new_worker().ledger.transaction() as connection:
            for name in order:
                count(connection, {(CounterName.IMAGES, name): 1})

    with ThreadPoolExecutor(2) as pool:
        with ledger.transaction() as connection:
            connection.execute(table.update().where(table.c.label == "n4").values(value=table.c.value))

            # When two transactions count them in opposite orders, and go on when the row is unlocked
            both = [pool.submit(work, names), pool.submit(work, names[::-1])]
            wait_until_blocked(2)

        # Then they do not deadlock
        for each in both:
            each.result(30)
    assert counted(ledger, CounterName.IMAGES) == dict.fromkeys(names, 3)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_on_postgresql_two_sessions_add_to_rows_of_their_own(ledger, ledger_url):
    # Given many sessions that count the same event
    with closing(Ledger(ledger_url, pooled=False)) as own:
        for _ in range(SHARDS):
            with own.transaction() as connection:
                count(connection, {(CounterName.ATTEMPTS, AttemptEnd.DONE): 1})

    # Then the counts are spread over several rows, and add up
    with ledger.reading() as connection:
        shards = Counter(connection.scalars(sa.select(table.c.shard)))
    assert len(shards) > 1
    assert attempts(ledger) == {"done": SHARDS}
