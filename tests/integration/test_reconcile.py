"""The message is a doorbell: whatever becomes of it, the reconciler rings again for what is due."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa
from jobs.ledger.intake import ABANDONED_SECONDS
from jobs.ledger.upkeep import count_due
from kombu.exceptions import OperationalError

from jobs import queue
from jobs.ledger import Ledger
from jobs.ledger.claims import end_job
from jobs.ledger.progress import job_status
from jobs.queue import CLASSIFY_QUEUE, KEY_PREFIX, Bell, make_app
from jobs.schema import JobState, chunks, db_now, jobs, locks
from jobs.settings import Settings
from worker import reconcile
from worker.reconcile import Reconciler


@pytest.fixture
def reconciler(ledger, bell) -> Reconciler:
    return Reconciler(ledger, bell, holder="anna")


def some_time_goes_by(ledger: Ledger) -> None:
    """As if every message had been sent a while ago."""
    with ledger.transaction() as connection:
        connection.execute(chunks.update().values(ring_after=db_now(-60)))


def ring_for(bell: Bell, job) -> None:
    assert bell.ring(chunk.id for chunk in job.chunks) == len(job.chunks)


def test_a_broker_that_lost_everything_loses_nothing(ledger, make_job, bell, broker, reconciler):
    # Given a job whose messages wait, and a broker that forgets them
    job = make_job([1, 1, 1])
    ring_for(bell, job)
    broker.client.flushall()
    some_time_goes_by(ledger)

    # When the reconciler looks, Then all of them are rung for again, once
    assert reconciler.tick() == 3
    assert broker.waiting() == 3
    for chunk in job.chunks:
        assert sum(chunk.id.encode() in message for message in broker.messages()) == 1

    # And not at every look
    assert reconciler.tick() == 0
    assert broker.waiting() == 3


def test_a_chunk_whose_worker_died_is_rung_for(ledger, make_job, worker, broker, reconciler):
    # Given a chunk that is being worked on, and one whose worker is not heard of any more
    job = make_job([1, 1])
    worker.must_claim(job.chunks[0], lease_seconds=60)
    worker.must_claim(job.chunks[1], lease_seconds=-1)
    some_time_goes_by(ledger)

    # When the reconciler looks, Then it rings for the second only
    assert reconciler.tick() == 1
    [message] = broker.messages()
    assert job.chunks[1].id.encode() in message


def test_nothing_is_rung_for_while_enough_messages_wait(ledger, make_job, bell, broker, reconciler):
    # Given a job whose messages have been waiting for long: the workers are busy
    job = make_job([1, 1, 1])
    ring_for(bell, job)
    some_time_goes_by(ledger)

    # When the reconciler looks, Then the queue does not grow
    assert reconciler.tick() == 0
    assert broker.waiting() == 3


def test_only_as_many_are_rung_for_as_are_missing(ledger, make_job, bell, broker, reconciler):
    # Given five chunks that wait, and two messages
    job = make_job([1] * 5)
    bell.ring([chunk.id for chunk in job.chunks[:2]])
    some_time_goes_by(ledger)

    # When the reconciler looks, Then there are as many messages as chunks
    assert reconciler.tick() == 3
    assert broker.waiting() == 5


def test_a_message_that_was_just_sent_is_given_time(make_job, broker, reconciler):
    # Given a job whose messages are on their way
    make_job([1, 1])

    # When the reconciler looks at this moment, Then it does not send them a second time
    assert reconciler.tick() == 0
    assert broker.waiting() == 0


def test_for_one_of_the_small_jobs_that_wait_is_rung_whatever_else_waits(
    ledger, make_job, bell, broker, reconciler, monkeypatch
):
    # Given a queue with as many messages as may wait, and small jobs whose messages were lost
    monkeypatch.setattr(reconcile, "MAX_OUTSTANDING", 4)
    monkeypatch.setattr(queue, "MAX_OUTSTANDING", 4)
    ring_for(bell, make_job([1] * 4))
    lost = [make_job([1]).chunks[0].id for _ in range(3)]
    assert reconciler.tick() == 0  # they may be on their way
    some_time_goes_by(ledger)

    # When the reconciler looks, Then it rings for the oldest, ahead of the others
    assert reconciler.tick() == 1
    assert broker.waiting() == 5
    assert lost[0].encode() in broker.client.lindex(KEY_PREFIX + CLASSIFY_QUEUE, -1)


def test_no_more_messages_wait_than_may(ledger, make_job, broker, reconciler, monkeypatch):
    # Given more chunks than there may be messages
    monkeypatch.setattr(reconcile, "MAX_OUTSTANDING", 4)
    monkeypatch.setattr(queue, "MAX_OUTSTANDING", 4)
    make_job([1] * 10)
    some_time_goes_by(ledger)

    # When the reconciler looks, again and again, Then the rest waits in the ledger
    for _ in range(3):
        reconciler.tick()
        some_time_goes_by(ledger)
    assert broker.waiting() == 4

    # And when there is room, there is a message for it
    broker.client.flushall()
    assert reconciler.tick() == 4


def test_what_there_is_no_room_for_does_not_count_as_rung_for(ledger, make_job, reconciler, monkeypatch):
    # Given more chunks than there may be messages
    monkeypatch.setattr(reconcile, "MAX_OUTSTANDING", 4)
    monkeypatch.setattr(queue, "MAX_OUTSTANDING", 4)
    make_job([1] * 10)
    some_time_goes_by(ledger)

    # When the reconciler looks
    reconciler.tick()

    # Then only as many chunks as got a message have to wait before they are rung for again
    with ledger.reading() as connection:
        just_rung_for = chunks.c.ring_after > db_now()
        assert connection.scalar(sa.select(sa.func.count()).where(just_rung_for)) == 4


def test_one_looks_at_a_time(ledger, make_job, bell, broker):
    # Given two workers' reconcilers, and the first at work
    anna, ben = Reconciler(ledger, bell, holder="anna"), Reconciler(ledger, bell, holder="ben")
    assert anna.tick() == 0

    # When there is something to do, Then the second leaves it to the first
    make_job([1])
    some_time_goes_by(ledger)
    assert ben.tick() == 0
    assert broker.waiting() == 0
    assert anna.tick() == 1

    # And takes over when the first is not heard of any more
    broker.client.flushall()
    some_time_goes_by(ledger)
    with ledger.transaction() as connection:
        connection.execute(locks.update().values(until=db_now(-1)))
    assert ben.tick() == 1
    assert anna.tick() == 0


def test_nothing_to_do_needs_no_broker(ledger, make_job, worker, settings, short_folder):
    # Given a ledger in which everything is done, and no broker
    job = make_job([1])
    worker.work(job.chunks[0])
    away = make_app(Settings(home=settings.home, broker_url=f"redis+socket://{short_folder}/nobody.sock"))

    # When the reconciler looks, Then all is well
    assert Reconciler(ledger, Bell(away), holder="anna").tick() == 0
    away.close()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_bell_counts_what_waits(bell, broker):
    assert bell.waiting() == 0
    bell.ring(["0" * 16, "1" * 16])
    assert broker.waiting() == 2
    assert bell.waiting() == 2


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_broker_that_is_away_is_rung_at_when_it_is_back(
    ledger, make_job, settings, short_folder, broker, bell
):
    # Given something to do and no broker
    make_job([1, 1])
    some_time_goes_by(ledger)
    away = make_app(Settings(home=settings.home, broker_url=f"redis+socket://{short_folder}/nobody.sock"))

    # When the reconciler looks, Then it says so and marks nothing as rung for
    with pytest.raises(OperationalError):
        Reconciler(ledger, Bell(away), holder="anna").tick()
    away.close()

    # And when the broker is there, it rings at once, even with a bell that was silent before
    bell.silent = True
    assert Reconciler(ledger, bell, holder="anna").tick() == 2
    assert broker.waiting() == 2


def test_a_job_whose_producer_was_killed_is_ended(ledger, make_job, broker, reconciler):
    # Given a job whose producer stopped halfway, long ago
    job = make_job([1], sealed=False)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-ABANDONED_SECONDS - 1)))
    some_time_goes_by(ledger)

    # When the reconciler looks, Then the job has failed, and nobody is called for its chunk
    assert reconciler.tick() == 0
    with ledger.reading() as connection:
        assert job_status(connection, job.id).state == JobState.FAILED
    assert broker.waiting() == 0


def test_nobody_is_called_for_what_a_stopped_job_left(ledger, make_job, worker, broker, reconciler):
    # Given a cancelled job with a chunk whose worker died
    job = make_job([1])
    worker.must_claim(job.chunks[0], lease_seconds=-1)
    with ledger.transaction() as connection:
        end_job(connection, job.id, JobState.CANCELLED)
    some_time_goes_by(ledger)

    # When the reconciler looks, Then nothing of it is due any more
    assert reconciler.tick() == 0
    assert broker.waiting() == 0
    with ledger.reading() as connection:
        assert count_due(connection, limit=1) == 0


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_reconciler_that_stands_still_keeps_no_other_waiting(ledger, ledger_url, bell, monkeypatch):
    # Given a reconciler that stands still in the middle of a look
    stands, goes_on = threading.Event(), threading.Event()

    def stand_still(_connection):
        stands.set()
        goes_on.wait(30)

    monkeypatch.setattr(reconcile, "drop_leftover_chunks", stand_still)
    with ThreadPoolExecutor(1) as pool, closing(Ledger.of_a_main_loop(ledger_url)) as own:
        standing = pool.submit(Reconciler(ledger, bell, holder="anna").tick)
        try:
            assert stands.wait(30)

            # When another one comes, Then it is told that it is not its turn, and does not wait
            assert Reconciler(own, bell, holder="ben").tick() == 0
        finally:
            goes_on.set()
        assert standing.result(30) == 0


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_who_holds_one_jobs_row_holds_up_no_other_job(ledger, ledger_url, make_job, bell, worker):
    # Given somebody who has the row of an abandoned job locked, and a job that waits
    abandoned = make_job([1], sealed=False)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-2 * ABANDONED_SECONDS)))
    waiting = make_job([1])
    some_time_goes_by(ledger)
    with worker.ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == abandoned.id).values(error="mine"))

        # When the reconciler looks, Then it rings all the same
        with closing(Ledger.of_a_main_loop(ledger_url)) as own:
            assert Reconciler(own, bell, holder="anna").tick() == 2

    # and fails the abandoned job when it can
    Reconciler(ledger, bell, holder="anna").tick()
    with ledger.reading() as connection:
        assert job_status(connection, abandoned.id).state == JobState.FAILED
        assert job_status(connection, waiting.id).state == JobState.RUNNING
