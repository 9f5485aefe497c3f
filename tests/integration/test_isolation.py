"""A chunk that keeps crashing is split until the image that does it is alone; the others get their labels."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from jobs.ledger.intake import NewChunk, seal_job
from jobs.ledger.isolation import (
    CRASHES_TO_GIVE_UP,
    CRASHES_TO_SPLIT,
    must_give_up,
    must_split,
    outcome_of_the_lone,
)
from sqlalchemy.engine import Row

from jobs.errors import ErrorCode, LeaseLost
from jobs.ledger import Ledger
from jobs.ledger.progress import Filter, job_status, stream_predictions
from jobs.outcomes import Outcome
from jobs.schema import ChunkState, chunks


def all_chunks(ledger: Ledger) -> list[Row[Any]]:
    with ledger.reading() as connection:
        return list(connection.execute(sa.select(chunks).order_by(chunks.c.first_index, chunks.c.id)))


def as_new_chunk(row: Row[Any]) -> NewChunk:
    return NewChunk(row.id, row.first_index, row.images, row.payload, row.payload_sha256)


def crash_until_split(worker, chunk: NewChunk, already: int = 0):
    for _ in range(already, CRASHES_TO_SPLIT):
        claim = worker.must_claim(chunk)
        assert not must_split(claim)
        worker.crash(claim)
    claim = worker.must_claim(chunk)
    assert must_split(claim)
    worker.split(claim)


@pytest.mark.parametrize("images", [2, 3, 300])
def test_two_halves_take_the_place_of_a_chunk_that_crashed_twice(ledger, make_job, worker, images):
    # Given a job of three chunks of which the middle one crashed as often as it may
    job = make_job([5, images, 5])
    crash_until_split(worker, job.chunks[1])

    # Then its images lie in two chunks, each of which begins where the other ends, in the same payload
    rows = [row for row in all_chunks(ledger) if row.payload == job.chunks[1].payload]
    [whole] = [row for row in rows if row.state == ChunkState.SPLIT]
    first, second = [row for row in rows if row.state == ChunkState.PENDING]
    assert (first.first_index, first.payload_offset, first.images) == (5, 0, images // 2)
    assert (second.first_index, second.payload_offset) == (5 + images // 2, images // 2)
    assert first.images + second.images == whole.images == images

    # And the job is done when all chunks but the split one are
    for row in [first, second]:
        worker.work(as_new_chunk(row))
    for chunk in (job.chunks[0], job.chunks[2]):
        worker.work(chunk)
    with ledger.reading() as connection:
        status = job_status(connection, job.id)
    assert (status.state, status.succeeded) == ("done", images + 10)
    assert [row.index for row in stream_predictions(ledger, job.id, Filter())] == list(range(images + 10))


def test_a_half_is_suspected_and_a_lone_image_begins_anew(ledger, make_job, worker):
    # Given a chunk of three that was split
    job = make_job([3])
    crash_until_split(worker, job.chunks[0])
    one, two = [row for row in all_chunks(ledger) if row.state == ChunkState.PENDING]

    # Then the half of two images needs one more crash to be split, the lone image as many as any lone one
    assert (one.images, one.crashes) == (1, 0)
    assert (two.images, two.crashes) == (2, CRASHES_TO_SPLIT - 1)
    crash_until_split(worker, as_new_chunk(two), already=two.crashes)


def test_who_lost_the_chunk_cannot_split_it(ledger, make_job, new_worker):
    # Given a chunk to be split that another worker took over
    job = make_job([4])
    slow, other = new_worker(), new_worker()
    for _ in range(CRASHES_TO_SPLIT):
        slow.crash(slow.must_claim(job.chunks[0]))
    lost = slow.must_claim(job.chunks[0], lease_seconds=-1)
    theirs = other.must_claim(job.chunks[0])

    # When the first one splits it, Then nothing happens to it
    with pytest.raises(LeaseLost):
        slow.split(lost)
    assert len(all_chunks(ledger)) == 1
    other.split(theirs)
    assert len(all_chunks(ledger)) == 3


def test_a_job_that_is_sealed_after_a_split_knows_how_many_chunks_it_has(ledger, make_job, worker):
    # Given a job that is still being received, with a chunk that was split and done
    job = make_job([2], sealed=False)
    crash_until_split(worker, job.chunks[0])
    halves = [as_new_chunk(row) for row in all_chunks(ledger) if row.state == ChunkState.PENDING]
    worker.work(halves[0])

    # When it is sealed, Then it is done with its last half, not before
    with ledger.transaction() as connection:
        seal_job(connection, job.id, fingerprint=None)
        assert job_status(connection, job.id).state == "running"
    worker.work(halves[1])
    with ledger.reading() as connection:
        assert job_status(connection, job.id).state == "done"


@pytest.mark.parametrize("code", [ErrorCode.QUARANTINED, ErrorCode.TIMEOUT])
def test_an_image_that_crashes_alone_is_given_up(make_job, worker, code):
    # Given a lone image that crashed as often as it may
    job = make_job([1])
    for _ in range(CRASHES_TO_GIVE_UP):
        claim = worker.must_claim(job.chunks[0])
        assert not must_give_up(claim)
        worker.crash(claim, code)

    # When it comes once more, Then it gets the code of its latest crash
    claim = worker.must_claim(job.chunks[0])
    assert must_give_up(claim)
    outcome = outcome_of_the_lone(claim, "a.png")
    assert outcome == Outcome("a.png", None, None, code, "it crashed")


@pytest.mark.parametrize("poison", [0, 150, 299])
def test_of_three_hundred_images_one_is_quarantined(ledger, make_job, worker, poison):
    # Given a chunk with one image that kills whoever looks at it
    job = make_job([300])
    attempts = 0

    # When workers are at it until nothing is left
    while waiting := [row for row in all_chunks(ledger) if row.state == ChunkState.PENDING]:
        for row in waiting:
            attempts += 1
            assert attempts <= 40  # no more than halving takes
            claim = worker.must_claim(as_new_chunk(row))
            holds_it = row.first_index <= poison < row.first_index + row.images
            if must_split(claim):
                worker.split(claim)
            elif must_give_up(claim):
                worker.finish(claim, [outcome_of_the_lone(claim, f"{poison}.png")])
            elif holds_it:
                worker.crash(claim)
            else:
                worker.finish(claim)

    # Then its 299 neighbours have their labels
    found = list(stream_predictions(ledger, job.id, Filter()))
    assert [row.index for row in found] == list(range(300))
    assert [row.index for row in found if row.error] == [poison]
    assert found[poison].error == ErrorCode.QUARANTINED
    with ledger.reading() as connection:
        status = job_status(connection, job.id)
    assert (status.state, status.succeeded, status.failed) == ("done", 299, 1)
