"""The ledger decides which chunk is next, and one worker gets it.

The order of claims, cuts, crashes and releases, and the fence that keeps earlier owners out, are proven by
the state machine in `tests/faults/test_ledger_machine.py`.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Row

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import COMBINED_CLAIM_IMAGES, RETRY_SECONDS, Reason, claim_next
from jobs.ledger.maintenance import release_expired_claims
from jobs.schema import SMALL_JOB_IMAGES, ChunkState, chunks, db_now
from tests.conftest import plans_of
from tests.threads import at_once

LARGE = SMALL_JOB_IMAGES + 1


def row_of(ledger: Ledger, chunk_id: str) -> Row[Any]:
    with ledger.reading() as connection:
        return connection.execute(sa.select(chunks).where(chunks.c.id == chunk_id)).one()


def expire(ledger: Ledger) -> int:
    with ledger.transaction() as connection:
        return release_expired_claims(connection)


@pytest.fixture
def submit(make_job):
    """Return a function: `submit([3, 2], priority=5, model=None)` submits a job and returns its chunks."""
    return lambda sizes, **options: make_job(sizes, **options).chunks


# ---- who is next ------------------------------------------------------------------------------------------


def test_a_claimed_chunk_has_its_owner_and_a_lease_that_starts_now(ledger, submit, worker):
    submit([LARGE])
    (claim,) = worker.claim_next()
    row = row_of(ledger, claim.chunk_id)
    assert (row.state, row.owner, row.token) == (ChunkState.CLAIMED, worker.name, claim.token)
    with ledger.reading() as connection:
        now = connection.scalar(sa.select(db_now()))
    assert 50 < (row.lease_until - now).total_seconds() <= 60


def test_many_workers_at_once_cut_one_chunk_without_losing_an_image(submit, new_worker):
    # Given one chunk of 1,000 images, and 4 workers that claim at most 64 at a time
    submit([1_000])
    workers = [new_worker(f"worker {number}") for number in range(4)]

    def claim_all(worker):
        claims = []
        for _ in range(100):  # a chunk that another worker is cutting right now is skipped
            claims += worker.claim_next(images=64)
        return claims

    # When all of them claim at once
    claims = [claim for got in at_once(claim_all, workers) for claim in got]

    # Then each image was claimed once
    images = [
        index for claim in claims for index in range(claim.first_index, claim.first_index + claim.images)
    ]
    assert sorted(images) == list(range(1_000))


def test_what_is_next_is_found_by_an_index_however_much_waits(ledger, submit):
    # Given many pending chunks
    submit([LARGE] * 200)

    # When a worker claims, Then the database uses the index of pending chunks, and sorts only the projects
    plans = plans_of(
        ledger,
        lambda connection: claim_next(
            connection, owner="x", token=new_id(), lease_seconds=60, images_for=lambda _: 1_000
        ),
    )
    [turns] = [plan for statement, plan in plans if "projects.turn" in statement]
    [first] = [plan for statement, plan in plans if "LIMIT" in statement and "FROM projects" not in statement]
    assert "ix_chunks_due" in turns
    assert "ix_chunks_due" in first
    assert "Sort" not in first
    assert "TEMP B-TREE" not in first


def test_no_more_are_claimed_together_than_a_batch_holds(submit, worker):
    for _ in range(9):
        submit([SMALL_JOB_IMAGES])
    assert sum(claim.images for claim in worker.claim_next()) == COMBINED_CLAIM_IMAGES


# ---- releasing --------------------------------------------------------------------------------------------


def test_an_unavailable_service_is_asked_less_and_less_often(ledger, submit, worker):
    # Given a chunk that is released again and again because a service is unavailable
    (chunk,) = submit([LARGE])
    waits = []
    for _ in range(9):
        worker.release(worker.must_claim(chunk), Reason.UNAVAILABLE)
        with ledger.transaction() as connection:
            row = connection.execute(sa.select(chunks.c.not_before, db_now().label("now"))).one()
            waits.append((row.not_before - row.now).total_seconds())
            connection.execute(chunks.update().values(not_before=db_now(-1)))

    # Then each wait is longer, up to a minute, and no crash is counted
    assert waits == pytest.approx([*RETRY_SECONDS, 60, 60], abs=0.9)
    assert (row_of(ledger, chunk.id).releases, row_of(ledger, chunk.id).crashes) == (9, 0)


# ---- time -------------------------------------------------------------------------------------------------


def test_no_clock_but_the_databases_own_writes_a_time(ledger, submit, worker):
    """A host whose clock is wrong must not matter, because leases compare times from many hosts."""
    # Given a record of all values that are sent to the database
    handed_over: list[Any] = []

    def look(_connection, _cursor, _statement, parameters, _context, executemany):
        for row in parameters if executemany else [parameters]:
            handed_over.extend(row.values() if isinstance(row, dict) else row)

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        # When chunks are claimed, cut, released and finished
        (chunk,) = submit([1_000])
        worker.claim_next(lease_seconds=-1)
        expire(ledger)
        worker.release(worker.claim_next()[0], Reason.UNAVAILABLE)
        submit([LARGE])
        worker.finish(worker.claim_next()[0])
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", look)

    # Then none of them is a time in text form
    assert chunk.id in handed_over
    assert not [value for value in handed_over if re.match(r"\d{4}-\d\d-\d\d", str(value))]
