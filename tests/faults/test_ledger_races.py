"""What happens at the same moment: whoever has a job's row never waits for a chunk's.

A worker that finishes has its chunk and waits for its job. Whoever waited the other way round would make a
deadlock with it. PostgreSQL locks row by row; on SQLite one writes at a time. More of it is in
tests/integration: `test_pausing`, `test_upkeep`, `test_outcomes`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from jobs.ledger.intake import NewChunk, discard_job
from jobs.ledger.isolation import split_chunk
from jobs.ledger.upkeep import chunks_to_ring, drop_leftover_chunks, fail_abandoned_jobs
from sqlalchemy.engine import Connection

from jobs.ledger import Ledger
from jobs.ledger.claims import claim_chunk, end_job, finish_chunks
from jobs.schema import JobState, chunks, db_now, jobs, predictions
from tests.conftest import JobMaker, Worker

pytestmark = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)


def waits_for_nobody(connection: Connection) -> None:
    """Who would wait raises instead: a lock of ours is given back by nobody else in these tests."""
    connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))


def states(ledger: Ledger) -> list[str]:
    with ledger.reading() as connection:
        return list(connection.scalars(sa.select(chunks.c.state).order_by(chunks.c.first_index)))


def test_who_drops_what_an_abandoned_job_left_passes_over_a_chunk_that_is_finished_late(
    ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    # Given a job whose producer was killed, and a worker that finishes a chunk of it after its lease
    job = make_job([1, 1], sealed=False)
    late = worker.must_claim(job.chunks[0], lease_seconds=-1)
    worker.must_claim(job.chunks[1], lease_seconds=-1)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-1_000)))
    with worker.ledger.transaction() as finishing:
        finish_chunks(finishing, [late])

        # When the reconciler ends the job and drops what is left, in one transaction
        with ledger.transaction() as connection:
            waits_for_nobody(connection)
            assert fail_abandoned_jobs(connection) == [job.id]
            drop_leftover_chunks(connection)

    # Then it did not wait for the worker, and dropped the other chunk
    assert states(ledger) == ["done", "dropped"]


def test_who_stops_a_job_passes_over_a_chunk_that_is_being_claimed(
    ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    # Given a job that is under way, and a worker that claims another chunk of it
    job = make_job([1, 1, 1])
    worker.work(job.chunks[0])
    with worker.ledger.transaction() as claiming:
        assert claim_chunk(claiming, job.chunks[1].id, lease_seconds=60, owner="anna")

        # When somebody cancels the job
        with ledger.transaction() as connection:
            waits_for_nobody(connection)
            assert end_job(connection, job.id, JobState.CANCELLED)

    # Then nobody waited, and what waited is dropped
    assert states(ledger) == ["done", "claimed", "dropped"]


def test_who_rings_passes_over_a_chunk_whose_worker_stands_still_with_it(
    ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    # Given a worker that stands still in the middle of a transaction about its chunk, beyond its lease
    job = make_job([1, 1])
    with ledger.transaction() as connection:
        connection.execute(chunks.update().values(ring_after=None))
    late = worker.must_claim(job.chunks[0], lease_seconds=-1)
    with worker.ledger.transaction() as finishing:
        finish_chunks(finishing, [late])

        # When another worker's reconciler looks what is due
        with ledger.transaction() as connection:
            waits_for_nobody(connection)
            rung = chunks_to_ring(connection, limit=10)

    # Then it does not stand still as well, and rings for the other chunk
    assert rung == [(job.chunks[1].id, False)]


def test_a_chunk_that_is_split_and_done_while_its_submission_is_taken_back_leaves_nothing(
    ledger: Ledger, make_job: JobMaker, worker: Worker, wait_until_blocked: Callable[[], None]
) -> None:
    # Given a submission that is under way, and a worker that splits its chunk
    job = make_job([2], sealed=False)
    splitting = worker.must_claim(job.chunks[0])
    taking_back = Ledger(ledger.engine.url)

    def work(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        """Between two statements of who takes it back, another worker does the halves."""
        if statement.startswith("DELETE FROM jobs"):
            with ledger.reading() as connection:
                halves = connection.execute(sa.select(chunks).where(chunks.c.state == "pending")).all()
            assert len(halves) == 2
            for half in halves:
                worker.work(NewChunk(half.id, half.first_index, half.images, half.payload, "0" * 64))

    sa.event.listen(taking_back.engine, "before_cursor_execute", work)

    def take_back() -> bool:
        with taking_back.transaction() as connection:
            return discard_job(connection, job.id)

    # When the producer takes the submission back before the split is committed
    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            split_chunk(connection, splitting)
            taken_back = pool.submit(take_back)
            wait_until_blocked()
        assert taken_back.result(30)
    taking_back.close()

    # Then nothing is left of it, no outcome either
    with ledger.reading() as connection:
        for table in (jobs, chunks, predictions):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0
