"""A paused job makes no progress, whatever else happens, and a resumed job continues where it was.

Which chunks are held, pending or dropped is proven by the state machine in
`tests/faults/test_ledger_machine.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.control import hold_leftover_chunks, pause_job, resume_job
from jobs.ledger.jobs.submission import NewChunk, add_chunk
from jobs.ledger.maintenance import release_expired_claims
from jobs.schema import ChunkState, JobState, chunks, jobs
from jobs.settings import ENV_PREFIX
from labelmill.commands.control import app as control_command
from tests.ledger_probes import cancel, chunk_states_of, status_of

PENDING, HELD = ChunkState.PENDING, ChunkState.HELD


def pause(ledger: Ledger, job) -> bool:
    with ledger.transaction() as connection:
        return pause_job(connection, job.id)


def resume(ledger: Ledger, job) -> int | None:
    with ledger.transaction() as connection:
        return resume_job(connection, job.id, limit=1_000)


def hold_leftovers(ledger: Ledger) -> None:
    """Hold leftover chunks as the reconciler does, after expired claims are released."""
    with ledger.transaction() as connection:
        release_expired_claims(connection)
        hold_leftover_chunks(connection)


# ---- pausing and resuming -----------------------------------------------------------------------------


def test_pausing_twice_is_pausing_once(ledger, make_job):
    job = make_job([1])
    assert pause(ledger, job)
    with ledger.reading() as connection:
        since = connection.scalar(sa.select(jobs.c.paused_at))
    assert pause(ledger, job)
    with ledger.reading() as connection:
        assert connection.scalar(sa.select(jobs.c.paused_at)) == since
    assert resume(ledger, job) == 1
    assert resume(ledger, job) is None


def test_a_job_that_finished_while_it_was_paused_is_not_shown_as_paused(ledger, make_job, worker):
    job = make_job([1])
    claim = worker.must_claim(job.chunks[0])
    pause(ledger, job)
    worker.finish(claim)
    status = status_of(ledger, job)
    assert (status.state, status.paused) == (JobState.DONE, False)


# ---- concurrency --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_resume_waits_for_who_holds_leftovers_and_finds_them(ledger, make_job, worker, wait_until_blocked):
    # Given a paused job with a released chunk, and a reconciler that is about to hold it
    job = make_job([1, 1])
    claim = worker.must_claim(job.chunks[0])
    pause(ledger, job)
    worker.release(claim)
    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            hold_leftover_chunks(connection)

            # When somebody resumes the job
            resumed = pool.submit(resume, ledger, job)
            wait_until_blocked()

        # Then both chunks are pending
        assert resumed.result(30) == 2
    assert chunk_states_of(ledger, job) == [PENDING, PENDING]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_who_holds_leftovers_passes_over_a_job_that_is_being_resumed(ledger, make_job, worker):
    # Given a paused job with a released chunk
    job = make_job([1, 1])
    claim = worker.must_claim(job.chunks[0])
    pause(ledger, job)
    worker.release(claim)
    with ledger.transaction() as connection:
        assert resume_job(connection, job.id, limit=1_000) == 2

        # When the reconciler runs before the resume is committed, Then it neither waits nor holds anything
        hold_leftovers(ledger)
    assert chunk_states_of(ledger, job) == [PENDING, PENDING]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_chunk_that_is_added_while_the_job_is_paused_is_seen_by_one_of_both(
    ledger, make_job, wait_until_blocked
):
    # Given a pause that is not committed yet
    job = make_job([1], sealed=False)
    added = NewChunk(new_id(), 1, 2, "payloads/x", "0" * 64)

    def add() -> None:
        with ledger.transaction() as connection:
            add_chunk(connection, job.id, added)

    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            pause_job(connection, job.id)

            # When the producer adds a chunk
            adding = pool.submit(add)
            wait_until_blocked()
        adding.result(30)

    # Then the chunk is held
    assert chunk_states_of(ledger, job) == [HELD, HELD]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_chunk_that_is_being_claimed_when_its_job_is_paused_is_in_work(ledger, make_job, new_worker):
    # Given a claim that is not committed yet
    job = make_job([1, 1])
    anna = new_worker("anna")
    with anna.ledger.transaction() as connection:
        connection.execute(chunks.update().where(chunks.c.id == job.chunks[0].id).values(owner="anna"))

        # When the job is paused, Then neither waits for the other
        assert pause(ledger, job)
    assert chunk_states_of(ledger, job) == [PENDING, HELD]

    # And the skipped chunk cannot be claimed, and is held when the reconciler runs
    assert anna.claim(job.chunks[0]) is None
    hold_leftovers(ledger)
    assert chunk_states_of(ledger, job) == [HELD, HELD]


# ---- from Python --------------------------------------------------------------------------------------


def test_a_client_rings_again_though_its_connection_was_cut(client, broker, make_job):
    # Given a client that has sent a wake-up for each chunk of a job
    jobs = [make_job([1, 1]), make_job([1])]
    for job in jobs:
        assert client.pause(job.id).paused
    status = client.resume(jobs[0].id)
    assert (status.state, status.paused) == (JobState.RUNNING, False)
    assert broker.waiting() == 2

    # When the broker closes the connection, as in a restart, Then the next wake-up is sent all the same
    assert broker.client.client_kill_filter(skipme=True) >= 1
    client.resume(jobs[1].id)
    assert broker.waiting() == 3
    assert not client.broker_unavailable


def test_a_resume_at_the_console_says_why_nobody_was_told(client, make_job, broker, run_command, monkeypatch):
    # Given a paused job, and a configured broker that cannot be reached
    job = make_job([1])
    client.pause(job.id)
    monkeypatch.setenv(ENV_PREFIX + "BROKER_URL", "redis+socket:///nowhere/valkey.sock")

    # When the job is resumed, Then a line says what is wrong with the broker, and that the job waits
    done = run_command(control_command, "resume", job.id)
    assert done.exit_code == 0
    [line] = [line for line in done.stderr.splitlines() if "broker" in line]
    assert line.startswith("The broker cannot be used (")
    assert "No such file" in line
    assert line.endswith("): the job waits in the ledger.")
    assert broker.waiting() == 0


def test_a_person_is_told_why_not(client, ledger, make_job):
    # Given a running job and a cancelled one
    running, cancelled = make_job([1]), make_job([1])
    cancel(ledger, cancelled)
    with pytest.raises(Conflict, match="is not paused: it is running"):
        client.resume(running.id)
    with pytest.raises(Conflict, match="has already finished: it is cancelled"):
        client.resume(cancelled.id)
    with pytest.raises(Conflict, match="has already finished: it is cancelled"):
        client.pause(cancelled.id)
    for action in (client.pause, client.resume):
        with pytest.raises(NotFound):
            action("nonsense")
