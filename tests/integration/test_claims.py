"""A worker takes a chunk and gives it back: one owner at a time, and a fence against the one before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from jobs.ledger.intake import NewChunk
from sqlalchemy.engine import Row

from jobs.errors import ErrorCode, JobStopped, LeaseLost
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import bury_claim, claim_chunk, end_job, were_finished, withdraw_claim
from jobs.schema import ChunkState, JobState, chunks, db_now, jobs

UNKNOWN = NewChunk(new_id(), 0, 1, "payloads/x", "0" * 64)


def row_of(ledger: Ledger, chunk: NewChunk) -> Row[Any]:
    with ledger.reading() as connection:
        return connection.execute(sa.select(chunks).where(chunks.c.id == chunk.id)).one()


def seconds_left(ledger: Ledger, chunk: NewChunk) -> float:
    """Of the chunk's lease, by the database's clock."""
    with ledger.reading() as connection:
        row = connection.execute(
            sa.select(chunks.c.lease_until, db_now().label("now")).where(chunks.c.id == chunk.id)
        ).one()
    return (row.lease_until - row.now).total_seconds()


def set_lease(ledger: Ledger, chunk: NewChunk, *, seconds: float) -> None:
    """As if so much were left of the chunk's lease."""
    with ledger.transaction() as connection:
        connection.execute(chunks.update().where(chunks.c.id == chunk.id).values(lease_until=db_now(seconds)))


def test_a_claim_says_all_that_the_work_needs(ledger, make_job, champion, worker):
    # Given a job of two chunks
    job = make_job([3, 2])

    # When a worker claims the second
    claim = worker.must_claim(job.chunks[1])

    # Then the claim says where its images are, what they are counted from, and by which model
    assert (claim.chunk_id, claim.job_id, claim.model_id) == (job.chunks[1].id, job.id, champion.id)
    assert (claim.first_index, claim.images, claim.attempts) == (3, 2, 1)
    assert (claim.payload, claim.payload_digest) == (job.chunks[1].payload, job.chunks[1].payload_digest)

    # And the row says who has it
    row = row_of(ledger, job.chunks[1])
    assert (row.state, row.owner, row.token) == (ChunkState.CLAIMED, worker.name, claim.token)


def test_a_chunk_has_one_owner(make_job, new_worker):
    # Given a chunk that a worker has claimed
    [chunk] = make_job().chunks
    new_worker("anna").must_claim(chunk)

    # When another worker gets the same message, Then there is nothing to do
    assert new_worker("ben").claim(chunk) is None


def test_a_chunk_that_is_not_in_the_ledger_is_nobodys_work(worker):
    assert worker.claim(UNKNOWN) is None


def test_a_chunk_that_is_done_is_not_claimed_again(make_job, new_worker):
    # Given a finished chunk
    [chunk] = make_job().chunks
    new_worker().work(chunk)

    # When its message comes once more, even after any lease would have run out
    # Then there is nothing to do
    assert new_worker().claim(chunk) is None


def test_many_workers_at_once_and_each_chunk_goes_to_one(make_job, new_worker):
    # Given 15 chunks, and 8 workers that go for all of them at the same moment
    job = make_job([1] * 15)
    workers = [new_worker(f"worker {number}") for number in range(8)]
    start = threading.Barrier(len(workers), timeout=30)

    def go_for_all(worker):
        start.wait()
        return [claim for chunk in job.chunks if (claim := worker.claim(chunk)) is not None]

    # When they have all tried
    with ThreadPoolExecutor(len(workers)) as pool:
        claims = [claim for got in pool.map(go_for_all, workers) for claim in got]

    # Then each chunk was claimed once, and counted once
    assert Counter(claim.chunk_id for claim in claims) == {chunk.id: 1 for chunk in job.chunks}
    assert {claim.attempts for claim in claims} == {1}


CLAIMER = """
import json, sys
from jobs.ledger import Ledger
from jobs.ledger.claims import claim_chunk
url, *chunk_ids = json.loads(sys.stdin.readline())
ledger = Ledger(url)
ledger.check()
print("ready", flush=True)
sys.stdin.readline()
for chunk_id in chunk_ids:
    with ledger.transaction() as connection:
        if claim_chunk(connection, chunk_id, lease_seconds=60, owner="x") is not None:
            print(chunk_id)
"""


def test_many_processes_at_once_and_each_chunk_goes_to_one(ledger_url, make_job):
    # Given 30 chunks and two processes, ready to go for all of them
    job = make_job([1] * 30)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            process.stdin.write(json.dumps([ledger_url, *(chunk.id for chunk in job.chunks)]) + "\n")
            process.stdin.flush()
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2

        # When they start together
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        claimed = [line for process in processes for line in process.communicate(timeout=30)[0].split()]
    finally:
        for process in processes:
            process.kill()
            process.communicate()

    # Then each chunk was claimed once
    assert [process.returncode for process in processes] == [0] * 2
    assert Counter(claimed) == {chunk.id: 1 for chunk in job.chunks}


def test_a_lease_lasts_as_long_as_it_says_and_no_longer(ledger, make_job, new_worker):
    # Given a claim with a lease
    [chunk] = make_job().chunks
    first = new_worker("anna").must_claim(chunk, lease_seconds=60)
    other = new_worker("ben")

    # When it has nearly run out, Then nobody else gets the chunk
    assert 50 < seconds_left(ledger, chunk) <= 60
    set_lease(ledger, chunk, seconds=30)
    assert other.claim(chunk) is None

    # When it has run out, Then another worker gets it, with a token of its own and one more attempt
    set_lease(ledger, chunk, seconds=-0.001)
    second = other.must_claim(chunk)
    assert second.token != first.token
    assert second.attempts == first.attempts + 1
    assert row_of(ledger, chunk).owner == "ben"


def test_a_lease_is_counted_from_now(ledger, make_job, worker):
    [chunk] = make_job().chunks
    worker.must_claim(chunk, lease_seconds=60)
    assert 50 < seconds_left(ledger, chunk) <= 60


def test_renewing_gives_a_whole_lease_again(ledger, make_job, new_worker):
    # Given a claim whose lease has almost, or altogether, run out
    [chunk] = make_job().chunks
    slow, other = new_worker("anna"), new_worker("ben")
    claim = slow.must_claim(chunk, lease_seconds=-1)

    # When its worker renews it before anybody else came
    slow.renew(claim, lease_seconds=60)

    # Then it is the worker's own for another lease
    assert 50 < seconds_left(ledger, chunk) <= 60
    assert other.claim(chunk) is None


def test_who_lost_the_chunk_cannot_renew_it(ledger, make_job, new_worker):
    # Given a worker that was away so long that another one took its chunk
    [chunk] = make_job().chunks
    slow, other = new_worker("anna"), new_worker("ben")
    lost = slow.must_claim(chunk, lease_seconds=-1)
    other.must_claim(chunk, lease_seconds=5)

    # When it comes back and renews, Then it is told
    with pytest.raises(LeaseLost):
        slow.renew(lost, lease_seconds=3600)

    # And the other's lease is as it was
    assert seconds_left(ledger, chunk) <= 5


def test_a_finished_chunk_cannot_be_renewed(make_job, worker):
    [chunk] = make_job().chunks
    claim = worker.must_claim(chunk)
    worker.finish(claim)
    with pytest.raises(LeaseLost):
        worker.renew(claim)


def test_a_chunk_given_back_can_be_claimed_at_once(ledger, make_job, new_worker):
    # Given a claim
    [chunk] = make_job().chunks
    worker = new_worker()
    claim = worker.must_claim(chunk, lease_seconds=3600)

    # When it is given back
    worker.release(claim)

    # Then it waits again, the reason beside it, and that it was no crash
    row = row_of(ledger, chunk)
    assert (row.state, row.lease_until, row.error) == (ChunkState.PENDING, None, "given back")
    assert (row.attempts, row.releases, row.crashes) == (1, 1, 0)

    # And the next claim is another attempt
    assert new_worker().must_claim(chunk).attempts == 2


def test_who_gives_back_again_and_again_is_rung_for_less_and_less_often(ledger, make_job, worker):
    # Given a chunk that is given back each time, When it is, Then the next ring is twice as far away
    [chunk] = make_job().chunks
    waits = []
    for _ in range(9):
        worker.release(worker.must_claim(chunk))
        with ledger.reading() as connection:
            row = connection.execute(sa.select(chunks.c.ring_after, db_now().label("now"))).one()
        waits.append((row.ring_after - row.now).total_seconds())
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.9)


def test_who_lost_the_chunk_cannot_give_it_back(ledger, make_job, new_worker):
    # Given a chunk that another worker took over
    [chunk] = make_job().chunks
    slow, other = new_worker("anna"), new_worker("ben")
    lost = slow.must_claim(chunk, lease_seconds=-1)
    theirs = other.must_claim(chunk)

    # When the first one gives it back
    slow.release(lost)

    # Then nothing happens to it
    row = row_of(ledger, chunk)
    assert (row.state, row.token, row.attempts) == (ChunkState.CLAIMED, theirs.token, 2)
    assert row.lease_until is not None


def test_what_is_done_cannot_be_given_back(ledger, make_job, worker):
    [chunk] = make_job().chunks
    claim = worker.must_claim(chunk)
    worker.finish(claim)
    worker.release(claim)
    assert row_of(ledger, chunk).state == ChunkState.DONE


def test_crashes_are_counted_apart_from_what_was_given_back(ledger, make_job, worker):
    # Given a chunk that was given back more often than a chunk may crash
    [chunk] = make_job().chunks
    for _ in range(5):
        worker.release(worker.must_claim(chunk))

    # When it crashes: by an error, and by a worker that vanishes with its lease
    worker.crash(worker.must_claim(chunk), ErrorCode.TIMEOUT)
    assert row_of(ledger, chunk).crash_code == ErrorCode.TIMEOUT
    worker.must_claim(chunk, lease_seconds=-1)
    claim = worker.must_claim(chunk)

    # Then all of it is counted, each under its own name, and the latest crash says what it was
    row = row_of(ledger, chunk)
    assert (row.attempts, row.releases, row.crashes) == (8, 5, 2)
    assert (claim.attempts, claim.crashes, claim.crash_code) == (8, 2, ErrorCode.QUARANTINED)


def test_the_claim_of_a_dead_process_is_free_at_once(ledger, make_job, new_worker):
    # Given a process that died with a long lease, and one that lives
    job = make_job([1, 1])
    dead, alive = new_worker("host/1"), new_worker("host/2")
    dead.must_claim(job.chunks[0], lease_seconds=3600)
    alive.must_claim(job.chunks[1], lease_seconds=3600)

    # When the parent buries the claims of the dead one
    with ledger.transaction() as connection:
        for chunk in job.chunks:
            bury_claim(connection, chunk.id, owner="host/1", code=ErrorCode.TIMEOUT, error="it hung")

    # Then its chunk can be claimed, and it was a crash; the living one's cannot
    claim = new_worker("host/3").must_claim(job.chunks[0])
    assert (claim.attempts, claim.crashes) == (2, 1)
    assert (claim.crash_code, claim.error) == (ErrorCode.TIMEOUT, "it hung")
    assert new_worker("host/3").claim(job.chunks[1]) is None


def test_the_end_of_a_process_changes_nothing_about_what_it_has_done(ledger, make_job, worker):
    [chunk] = make_job().chunks
    worker.work(chunk)
    with ledger.transaction() as connection:
        bury_claim(connection, chunk.id, owner=worker.name, code=ErrorCode.QUARANTINED, error="it died")
    row = row_of(ledger, chunk)
    assert (row.state, row.lease_until, row.crashes) == (ChunkState.DONE, None, 0)


def test_a_claim_whose_commit_broke_off_is_withdrawn(ledger, make_job):
    # Given a claim of which its worker never heard whether it went through
    job = make_job([1, 1])
    token = new_id()
    with ledger.transaction() as connection:
        claim_chunk(connection, job.chunks[0].id, lease_seconds=3600, owner="a", token=token)

    # When it is withdrawn, and so is one that did not go through
    with ledger.transaction() as connection:
        withdraw_claim(connection, token)
        withdraw_claim(connection, new_id())

    # Then the chunk waits, and nothing was a crash
    for chunk, releases in zip(job.chunks, (1, 0), strict=True):
        row = row_of(ledger, chunk)
        assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, releases, 0)


def test_a_commit_that_broke_off_is_read_back_by_its_token(ledger, make_job, new_worker):
    # Given a chunk that one worker lost and another finished
    [chunk] = make_job().chunks
    slow, other = new_worker(), new_worker()
    lost = slow.must_claim(chunk, lease_seconds=-1)
    theirs = other.must_claim(chunk)
    with ledger.reading() as connection:
        assert not were_finished(connection, [theirs])
    other.finish(theirs)

    # When both ask, Then it was the other's doing
    with ledger.reading() as connection:
        assert were_finished(connection, [theirs])
        assert not were_finished(connection, [lost])


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_who_renews_for_a_stopped_job_is_told(ledger, make_job, worker, state):
    # Given a long chunk whose job is stopped
    job = make_job()
    claim = worker.must_claim(job.chunks[0])
    with ledger.transaction() as connection:
        end_job(connection, job.id, state)

    # When its worker looks up, Then it is told, and what it gives back is dropped
    with pytest.raises(JobStopped):
        worker.renew(claim)
    worker.release(claim)
    assert row_of(ledger, job.chunks[0]).state == ChunkState.DROPPED


def test_a_job_starts_with_its_first_claim(ledger, make_job, worker):
    # Given a job that nobody has looked at
    job = make_job([1, 1])

    def started_at():
        with ledger.reading() as connection:
            return connection.scalar(sa.select(jobs.c.started_at).where(jobs.c.id == job.id))

    assert started_at() is None

    # When its chunks are claimed one after the other
    worker.must_claim(job.chunks[0])
    first = started_at()
    time.sleep(0.01)
    worker.must_claim(job.chunks[1])

    # Then the first claim says when it started
    assert first is not None
    assert started_at() == first


def test_no_clock_but_the_databases_own_writes_a_time(make_job, worker):
    """Leases compare what many hosts wrote: a host whose clock is wrong must not matter."""
    # Given an eye on all that is handed to the database
    handed_over: list[Any] = []

    def look(_connection, _cursor, _statement, parameters, _context, executemany):
        for row in parameters if executemany else [parameters]:
            handed_over.extend(row.values() if isinstance(row, dict) else row)

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        # When chunks go the whole way
        job = make_job([1, 1, 1])
        for chunk in job.chunks:
            worker.must_claim(chunk, lease_seconds=-1)
            claim = worker.must_claim(chunk)
            worker.renew(claim)
            worker.finish(claim)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", look)

    # Then no time was among it
    assert job.id in handed_over
    assert not [value for value in handed_over if re.match(r"\d{4}-\d\d-\d\d", str(value))]


def test_times_come_back_in_utc(ledger, make_job, worker):
    [chunk] = make_job().chunks
    worker.must_claim(chunk)
    row = row_of(ledger, chunk)
    for moment in (row.created_at, row.rung_at, row.lease_until):
        assert moment.utcoffset() == timedelta(0)
