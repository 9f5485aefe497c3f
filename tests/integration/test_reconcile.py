"""The reconciler makes the number of waiting messages match the number of due chunks, whatever happens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa
from kombu.exceptions import OperationalError

from jobs import queue
from jobs.ledger import Ledger
from jobs.ledger.control import end_job
from jobs.ledger.maintenance import count_due
from jobs.ledger.queries import job_status
from jobs.ledger.submission import ABANDONED_SECONDS
from jobs.queue import Publisher, make_app
from jobs.schema import JobState, chunks, db_now, jobs, locks
from jobs.settings import Settings
from worker import reconcile
from worker.reconcile import Reconciler


@pytest.fixture
def reconciler(ledger, publisher) -> Reconciler:
    return Reconciler(ledger, publisher, holder="anna")


def test_a_broker_that_lost_everything_loses_nothing(make_job, publisher, broker, reconciler):
    # Given a job whose messages wait, and a broker that loses them
    make_job([1, 1, 1])
    assert publisher.wake_up(3) == 3
    broker.client.flushall()

    # When the reconciler ticks, Then there are as many wake-ups as before
    assert reconciler.tick() == 3
    assert broker.waiting() == 3

    # And the next tick sends none
    assert reconciler.tick() == 0
    assert broker.waiting() == 3


def test_a_chunk_whose_worker_vanished_is_due_again(ledger, make_job, worker, broker, reconciler):
    # Given a claimed chunk, and one whose lease has expired
    job = make_job([1, 1])
    worker.must_claim(job.chunks[0], lease_seconds=60)
    worker.must_claim(job.chunks[1], lease_seconds=-1)

    # When the reconciler ticks, Then the second is pending with a crash, and one wake-up is sent for it
    assert reconciler.tick() == 1
    assert broker.waiting() == 1
    with ledger.reading() as connection:
        rows = sa.select(chunks.c.state, chunks.c.crashes).order_by(chunks.c.first_index)
        assert connection.execute(rows).all() == [("claimed", 0), ("pending", 1)]


def test_nothing_is_sent_while_enough_messages_wait(make_job, publisher, broker, reconciler):
    # Given a job whose messages still wait, because the workers are busy
    make_job([1, 1, 1])
    assert publisher.wake_up(3) == 3

    # When the reconciler ticks, Then the queue does not grow
    assert reconciler.tick() == 0
    assert broker.waiting() == 3


def test_only_as_many_are_sent_as_are_missing(make_job, publisher, broker, reconciler):
    # Given five pending chunks, and two messages
    make_job([1] * 5)
    publisher.wake_up(2)

    # When the reconciler ticks, Then there are as many messages as chunks
    assert reconciler.tick() == 3
    assert broker.waiting() == 5


def test_no_more_messages_wait_than_may(make_job, broker, reconciler, monkeypatch):
    # Given more pending chunks than messages allowed
    monkeypatch.setattr(reconcile, "MAX_WAITING", 4)
    monkeypatch.setattr(queue, "MAX_WAITING", 4)
    make_job([1] * 10)

    # When the reconciler ticks several times, Then the rest waits in the ledger only
    for _ in range(3):
        reconciler.tick()
    assert broker.waiting() == 4

    # And when there is room, messages are sent for the rest
    broker.client.flushall()
    assert reconciler.tick() == 4


def test_one_looks_at_a_time(ledger, make_job, publisher, broker):
    # Given the reconcilers of two workers, the first of which holds the lock
    anna, ben = Reconciler(ledger, publisher, holder="anna"), Reconciler(ledger, publisher, holder="ben")
    assert anna.tick() == 0

    # When a chunk is due, Then the second reconciler leaves it to the first
    make_job([1])
    assert ben.tick() == 0
    assert broker.waiting() == 0
    assert anna.tick() == 1

    # And takes over once the first's lock has expired
    broker.client.flushall()
    with ledger.transaction() as connection:
        connection.execute(locks.update().values(until=db_now(-1)))
    assert ben.tick() == 1
    assert anna.tick() == 0


def test_nothing_to_do_needs_no_broker(ledger, make_job, worker, settings, short_folder):
    # Given a ledger in which everything is done, and no broker
    job = make_job([1])
    worker.work(job.chunks[0])
    away = make_app(Settings(home=settings.home, broker_url=f"redis+socket://{short_folder}/nobody.sock"))

    # When the reconciler ticks, Then there is no error
    assert Reconciler(ledger, Publisher(away), holder="anna").tick() == 0
    away.close()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_publisher_counts_what_waits(publisher, broker):
    assert publisher.waiting() == 0
    assert publisher.wake_up(2) == 2
    assert broker.waiting() == 2
    assert publisher.waiting() == 2


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_broker_that_was_unavailable_gets_the_messages_when_it_is_back(
    ledger, make_job, settings, short_folder, broker, publisher
):
    # Given two due chunks and no broker
    make_job([1, 1])
    away = make_app(Settings(home=settings.home, broker_url=f"redis+socket://{short_folder}/nobody.sock"))

    # When the reconciler ticks, Then it raises the broker's error
    with pytest.raises(OperationalError):
        Reconciler(ledger, Publisher(away), holder="anna").tick()
    away.close()

    # And once the broker is back, the next tick sends the messages, even if it was marked unavailable
    publisher.unavailable = True
    assert Reconciler(ledger, publisher, holder="anna").tick() == 2
    assert broker.waiting() == 2


def test_a_job_whose_producer_was_killed_is_ended(ledger, make_job, broker, reconciler):
    # Given a job whose producer stopped halfway, long ago
    job = make_job([1], sealed=False)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-ABANDONED_SECONDS - 1)))

    # When the reconciler ticks, Then the job has failed, and no message is sent for its chunk
    assert reconciler.tick() == 0
    with ledger.reading() as connection:
        assert job_status(connection, job.id).state == JobState.FAILED
    assert broker.waiting() == 0


def test_nobody_is_called_for_what_a_stopped_job_left(ledger, make_job, worker, broker, reconciler):
    # Given a cancelled job with a chunk whose lease has expired
    job = make_job([1])
    worker.must_claim(job.chunks[0], lease_seconds=-1)
    with ledger.transaction() as connection:
        end_job(connection, job.id, JobState.CANCELLED)

    # When the reconciler ticks, Then nothing of the job is due
    assert reconciler.tick() == 0
    assert broker.waiting() == 0
    with ledger.reading() as connection:
        assert count_due(connection, limit=1) == 0


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_reconciler_that_stands_still_keeps_no_other_waiting(ledger, ledger_url, publisher, monkeypatch):
    # Given a reconciler that blocks in the middle of a tick
    stands, goes_on = threading.Event(), threading.Event()

    def stand_still(_connection):
        stands.set()
        goes_on.wait(30)

    monkeypatch.setattr(reconcile, "drop_leftover_chunks", stand_still)
    with ThreadPoolExecutor(1) as pool, closing(Ledger.for_main_process(ledger_url)) as own:
        standing = pool.submit(Reconciler(ledger, publisher, holder="anna").tick)
        try:
            assert stands.wait(30)

            # When another one ticks, Then it neither waits nor does anything
            assert Reconciler(own, publisher, holder="ben").tick() == 0
        finally:
            goes_on.set()
        assert standing.result(30) == 0


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_who_holds_one_jobs_row_holds_up_no_other_job(ledger, ledger_url, make_job, publisher, worker):
    # Given a transaction that has locked the row of an abandoned job, and another job that is due
    abandoned = make_job([1], sealed=False)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-2 * ABANDONED_SECONDS)))
    waiting = make_job([1])
    with worker.ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == abandoned.id).values(error="mine"))

        # When the reconciler ticks, Then it sends messages all the same
        with closing(Ledger.for_main_process(ledger_url)) as own:
            assert Reconciler(own, publisher, holder="anna").tick() == 2

    # And it fails the abandoned job once the row is unlocked
    Reconciler(ledger, publisher, holder="anna").tick()
    with ledger.reading() as connection:
        assert job_status(connection, abandoned.id).state == JobState.FAILED
        assert job_status(connection, waiting.id).state == JobState.RUNNING
