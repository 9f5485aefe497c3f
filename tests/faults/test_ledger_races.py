"""What happens at the same moment: a process that has a job's row never waits for a chunk's.

A worker that finishes has its chunk and waits for its job. Whoever waited the other way round would make a
deadlock with it. PostgreSQL locks row by row; on SQLite one writes at a time. More of it is in
tests/integration: `test_control`, `test_maintenance`, `test_results`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import Claim, claim_next
from jobs.ledger.jobs.control import drop_leftover_chunks
from jobs.ledger.jobs.results import finish_claims
from jobs.ledger.jobs.submission import NewChunk, discard_job
from jobs.ledger.maintenance import fail_abandoned_jobs, release_expired_claims
from jobs.schema import chunks, db_now, jobs, predictions
from tests.conftest import JobMaker, Worker

pytestmark = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)


def waits_for_nobody(connection: Connection) -> None:
    """Who would wait raises instead: a lock of ours is given back by nobody else in these tests."""
    connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))


def claim(connection: Connection, *, images: int) -> list[Claim]:
    return claim_next(
        connection, owner="anna", token=new_id(), lease_seconds=60, images_for=lambda _model: images
    )


def states(ledger: Ledger) -> list[str]:
    with ledger.reading() as connection:
        return list(connection.scalars(sa.select(chunks.c.state).order_by(chunks.c.first_index)))


def test_who_drops_what_an_abandoned_job_left_passes_over_a_chunk_that_is_finished_late(
    ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    # Given a job whose producer was killed, and a worker that finishes a chunk of it after its lease
    job = make_job([1, 1], sealed=False)
    late = worker.must_claim(job.chunks[0])
    worker.must_claim(job.chunks[1])
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-1_000)))
        connection.execute(chunks.update().values(lease_until=db_now(-1)))
    with worker.ledger.transaction() as finishing:
        finish_claims(finishing, [late])

        # When the reconciler ends the job and drops what is left, in one transaction
        with ledger.transaction() as connection:
            waits_for_nobody(connection)
            assert fail_abandoned_jobs(connection) == [job.id]
            assert release_expired_claims(connection) == 1
            drop_leftover_chunks(connection)

    # Then it did not wait for the worker, and dropped the other chunk
    assert states(ledger) == ["done", "dropped"]


def test_a_chunk_that_is_cut_and_done_while_its_submission_is_taken_back_leaves_nothing(
    ledger: Ledger, make_job: JobMaker, worker: Worker, wait_until_blocked: Callable[[], None]
) -> None:
    # Given a submission that is under way, and a worker that cuts its chunk
    job = make_job([2], sealed=False)
    taking_back = Ledger(ledger.engine.url)

    def work(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        """Between two statements of taking it back, another worker does the rest."""
        if statement.startswith("DELETE FROM jobs"):
            with ledger.reading() as connection:
                rest = connection.execute(sa.select(chunks).where(chunks.c.state == "pending")).one()
            worker.work(NewChunk(rest.id, rest.first_index, rest.images, rest.payload, "0" * 64))

    sa.event.listen(taking_back.engine, "before_cursor_execute", work)

    def take_back() -> bool:
        with taking_back.transaction() as connection:
            return discard_job(connection, job.id)

    # When the producer takes the submission back before the cut is committed
    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            (first,) = claim(connection, images=1)
            assert first.was_cut
            taken_back = pool.submit(take_back)
            wait_until_blocked()
        assert taken_back.result(30)
    taking_back.close()

    # Then nothing is left of it, no outcome either
    with ledger.reading() as connection:
        for table in (jobs, chunks, predictions):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0
