"""The reconciler makes the number of waiting messages match the number of due chunks, whatever happens.

How many it sends, and that one looks at a time, is proven by the state machine in
`tests/faults/test_ledger_machine.py`.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa
from kombu.exceptions import OperationalError

from jobs.errors import LedgerFull
from jobs.ledger import Ledger
from jobs.queue import Publisher, make_app
from jobs.schema import chunks
from jobs.settings import Settings
from worker import reconciler as reconcile
from worker.reconciler import Reconciler


@pytest.fixture
def reconciler(ledger, publisher) -> Reconciler:
    return Reconciler(ledger, publisher, holder="anna")


def test_nothing_to_do_needs_no_broker(ledger, make_job, worker, settings, short_folder):
    # Given a ledger in which everything is done, and no broker
    job = make_job([1])
    worker.work(job.chunks[0])
    away = make_app(Settings(home=settings.home, broker_url=f"redis+socket://{short_folder}/nobody.sock"))

    # When the reconciler ticks, Then there is no error
    assert Reconciler(ledger, Publisher(away), holder="anna").tick() == 0
    away.close()


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


def test_a_lease_that_expires_long_after_an_outage_is_a_crash(ledger, make_job, worker, publisher):
    # Given a reconciler whose ledger was unavailable more than a lease ago, and an expired claim
    reconciler = Reconciler(ledger, publisher, holder="anna", lease_seconds=0.0)
    reconciler.note_outage()
    worker.must_claim(make_job([1]).chunks[0], lease_seconds=-1)

    # When it ticks, Then the chunk has one crash
    reconciler.tick()
    with ledger.reading() as connection:
        assert connection.execute(sa.select(chunks.c.crashes, chunks.c.releases)).one() == (1, 0)


@pytest.mark.parametrize("ledger_url", ["sqlite_on_disk"], indirect=True)
def test_a_lease_that_expires_on_a_nearly_full_disk_is_no_crash(ledger, disk, make_job, worker, reconciler):
    # Given an expired claim, and a disk with room for little more than a release
    worker.must_claim(make_job([1]).chunks[0], lease_seconds=-1)
    disk.fill(but=2**20)

    # When the reconciler ticks, Then it waits for room, as workers do
    with pytest.raises(LedgerFull):
        reconciler.tick()
    reconciler.note_outage()

    # And when there is room, no crash is counted
    disk.make_room()
    reconciler.tick()
    with ledger.reading() as connection:
        assert connection.execute(sa.select(chunks.c.crashes, chunks.c.releases)).one() == (0, 1)


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
