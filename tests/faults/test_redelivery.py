"""A message outlives the process that had it: nobody has to send another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.ledger.locks import RECONCILE_LOCK
from jobs.schema import db_now, locks
from tests.console import until
from tests.faults.checker import chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule

#: Celery gives the message back a second after the death. Far less than this also where the machine is busy.
_BACK_SECONDS = 60.0


@contextmanager
def nobody_reconciles(harness: Harness) -> Iterator[None]:
    """Somebody who does nothing has the reconciler's lock."""

    def take() -> bool:
        with harness.ledger.transaction() as connection:
            taken = connection.execute(
                locks.update()
                .where(locks.c.name == RECONCILE_LOCK)
                .values(holder="a test", until=db_now(3_600))
            )
        return taken.rowcount == 1

    until(take, "a worker has reconciled once")
    try:
        yield
    finally:
        with harness.ledger.transaction() as connection:
            connection.execute(locks.delete().where(locks.c.name == RECONCILE_LOCK))


def test_the_message_of_a_process_that_dies_comes_back_by_itself(sqlite_harness: Harness) -> None:
    harness, images = sqlite_harness, pictures(30)
    with nobody_reconciles(harness):
        # given a process that dies with its chunk claimed
        harness.plan.set(Rule("after claim", "kill", times=1, every=1))
        job = harness.submit(images, chunk_images=len(images))

        # when nobody sends another wake-up, then another process has its message all the same
        verdict = harness.judge(job, images, seconds=_BACK_SECONDS)
        assert len(harness.plan.events("kill")) == 1
    assert verdict.clean, verdict
    [chunk] = chunk_rows(harness.url, job)
    assert (chunk["attempts"], chunk["crashes"]) == (2, 1)
