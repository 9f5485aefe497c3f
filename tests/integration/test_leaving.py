"""A chunk is left before its end where somebody waits or where it takes long; nothing is lost by that."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from PIL import Image

from jobs.errors import ErrorCode, LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import Claim, end_job
from jobs.ledger.outcomes import Classified, Outcome, record_outcomes
from jobs.ledger.pausing import hold_leftover_chunks, pause_job
from jobs.ledger.upkeep import drop_leftover_chunks
from jobs.schema import SMALL_JOB_IMAGES, ChunkState, JobState, chunks, jobs
from tests.bench_alone import Mill
from tests.conftest import Broker
from worker.predicting import lookout
from worker.predicting.pipeline import classify_chunk


def picture(number: int) -> bytes:
    """Each number another one."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(number) for number in range(300)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at a chunk looks up after each image, and finds any small job long neglected."""
    monkeypatch.setattr(lookout, "SMALL_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(lookout, "NEGLECTED_SECONDS", -1.0)
    monkeypatch.setattr(lookout, "_WORTH_LEAVING_SECONDS", 0.0)


@pytest.fixture
def rung(broker: Broker) -> Callable[[], list[str]]:
    """The chunks whose messages wait, that first which is taken first; then none waits any more."""

    def rung() -> list[str]:
        messages = map(json.loads, broker.messages())
        broker.client.flushall()
        return [json.loads(base64.b64decode(message["body"]))[0][0] for message in messages]

    return rung


def rows(ledger: Ledger, job_id: str) -> list[sa.Row[tuple[object, ...]]]:
    """A job's chunks, in the order of their images."""
    with ledger.reading() as connection:
        of_job = sa.select(chunks).where(chunks.c.job_id == job_id)
        return list(connection.execute(of_job.order_by(chunks.c.first_index)))


def sizes(ledger: Ledger, job_id: str) -> list[tuple[str, int]]:
    return [(row.state, row.images) for row in rows(ledger, job_id)]


# ---- at the bench -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager")
def test_a_small_job_does_not_wait_for_the_end_of_a_large_chunk(
    mill: Mill, rung: Callable[[], list[str]]
) -> None:
    # Given what the model says of many images, some of them broken, when nobody waits
    contents = [*PICTURES[:200], b"no picture", *PICTURES[200:]]
    alone, chunk_id = mill.job(contents)
    assert classify_chunk(chunk_id, mill.bench) == len(contents)

    # When a worker is at the same images, and a small job comes that nobody takes
    job_id, chunk_id = mill.job(contents)
    small_id, small_chunk = mill.job([PICTURES[0]])
    assert classify_chunk(chunk_id, mill.bench) == 1

    # Then it records what it has and leaves; the small job's message is the first, then comes what was left
    front, rest = rows(mill.ledger, job_id)
    assert (front.state, front.images, rest.state, rest.images) == ("done", 1, "pending", len(contents) - 1)
    assert rung() == [small_chunk, rest.id]
    assert (mill.status(job_id).state, mill.status(job_id).succeeded) == (JobState.RUNNING, 1)

    # And when those are delivered, each image has the answer that it has when nobody waits
    assert classify_chunk(small_chunk, mill.bench) == 1
    assert classify_chunk(rest.id, mill.bench) == len(contents) - 1
    assert mill.answers(job_id) == mill.answers(alone)
    assert mill.status(small_id).state == mill.status(job_id).state == JobState.DONE
    assert len({label for _, label, _ in mill.answers(job_id)}) > 2
    assert rung() == []


@pytest.mark.usefixtures("eager")
def test_images_that_are_decoded_together_are_left_between_two_heaps(mill: Mill) -> None:
    contents = (PICTURES * 9)[:2_500]
    alone, chunk_id = mill.job(contents)
    assert classify_chunk(chunk_id, mill.bench) == 2_500
    job_id, chunk_id = mill.job(contents)
    _, small_chunk = mill.job([PICTURES[0]])

    assert classify_chunk(chunk_id, mill.bench) == 2_048

    assert sizes(mill.ledger, job_id) == [("done", 2_048), ("pending", 452)]
    # What is left of one that was left can be left as well: here it is decoded image by image.
    [*_, rest] = rows(mill.ledger, job_id)
    assert classify_chunk(rest.id, mill.bench) == 1
    assert classify_chunk(small_chunk, mill.bench) == 1
    [*_, rest] = rows(mill.ledger, job_id)
    assert classify_chunk(rest.id, mill.bench) == 451
    assert mill.answers(job_id) == mill.answers(alone)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("why", ["nobody waits", "paused", "just came", "nearly through"])
def test_a_chunk_is_not_left_for_nothing(mill: Mill, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    job_id, chunk_id = mill.job(PICTURES)
    if why != "nobody waits":
        small_id, _ = mill.job([PICTURES[0]])
    if why == "paused":
        with mill.ledger.transaction() as connection:
            assert pause_job(connection, small_id)
    elif why == "just came":
        monkeypatch.setattr(lookout, "NEGLECTED_SECONDS", 1_000.0)
    elif why == "nearly through":
        monkeypatch.setattr(lookout, "_WORTH_LEAVING_SECONDS", 1_000.0)

    assert classify_chunk(chunk_id, mill.bench) == len(PICTURES)
    assert sizes(mill.ledger, job_id) == [("done", len(PICTURES))]


@pytest.mark.usefixtures("eager")
def test_a_chunk_that_crashed_is_tried_as_it_is(mill: Mill) -> None:
    """Otherwise its crashes would be forgotten, or blamed on what did not crash."""
    _, chunk_id = mill.job(PICTURES)
    with mill.ledger.transaction() as connection:
        connection.execute(chunks.update().where(chunks.c.id == chunk_id).values(crashes=1))
    mill.job([PICTURES[0]])

    assert classify_chunk(chunk_id, mill.bench) == len(PICTURES)


@pytest.mark.usefixtures("eager")
def test_small_jobs_are_not_left_for_others_of_their_kind(mill: Mill) -> None:
    small = [mill.job(PICTURES[:SMALL_JOB_IMAGES]) for _ in range(10)]
    assert classify_chunk(small[0][1], mill.bench) == 8 * SMALL_JOB_IMAGES


def test_a_chunk_that_takes_long_keeps_what_it_has_and_is_no_crash(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, rung: Callable[[], list[str]]
) -> None:
    # Given a chunk that takes longer than a half of its time limit after each image
    monkeypatch.setattr(lookout, "_LONG_SHARE", 0.0)
    job_id, chunk_id = mill.job(PICTURES[:4])

    # When its messages come one after the other, Then each brings it further, and nothing is a crash
    for _ in range(4):
        assert classify_chunk(chunk_id, mill.bench) == 1
        [chunk_id, *more] = [*rung(), ""]
        assert more in ([], [""])
    assert [(row.state, row.images, row.attempts, row.crashes) for row in rows(mill.ledger, job_id)] == [
        ("done", 1, 1, 0)
    ] * 4
    assert mill.status(job_id).state == JobState.DONE


@pytest.mark.usefixtures("eager")
def test_a_ledger_that_does_not_say_whether_anybody_waits_costs_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("The ledger cannot be reached")

    monkeypatch.setattr(lookout, "neglected_small", away)
    job_id, chunk_id = mill.job(PICTURES)
    mill.job([PICTURES[0]])
    assert classify_chunk(chunk_id, mill.bench) == len(PICTURES)
    assert sizes(mill.ledger, job_id) == [("done", len(PICTURES))]


@pytest.mark.usefixtures("eager")
def test_a_time_limit_that_strikes_while_it_looks_is_heard(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise Unavailable("The connection broke") from SoftTimeLimitExceeded()

    monkeypatch.setattr(lookout, "neglected_small", hangs)
    job_id, chunk_id = mill.job(PICTURES)
    assert classify_chunk(chunk_id, mill.bench) == 0
    [row] = rows(mill.ledger, job_id)
    assert (row.state, row.images) == ("pending", len(PICTURES))


# ---- in the ledger ----------------------------------------------------------------------------------------


def leave(ledger: Ledger, claim: Claim, done: int, *, error: ErrorCode | None = None) -> str:
    """Records the first images; gives back the id of the chunk that the others become."""
    outcome = Outcome("a", None, None, error) if error else Outcome("a", "7", 0.5)
    rest_id = new_id()
    with ledger.transaction() as connection:
        record_outcomes(connection, [Classified(claim, [outcome] * done, None, rest_id)])
    return rest_id


def test_the_rest_is_as_old_as_its_chunk_and_shares_its_payload(ledger, make_job, worker):
    job = make_job([3, 8])
    before = rows(ledger, job.id)[1]
    rest_id = leave(ledger, worker.must_claim(job.chunks[1]), 5)

    _, front, rest = rows(ledger, job.id)
    assert (front.id, front.first_index, front.images, front.state) == (job.chunks[1].id, 3, 5, "done")
    assert (rest.id, rest.first_index, rest.images, rest.payload_offset) == (rest_id, 8, 3, 5)
    assert (rest.state, rest.attempts, rest.crashes, rest.token) == ("pending", 0, 0, None)
    assert (rest.payload, rest.payload_sha256) == (before.payload, before.payload_sha256)
    assert rest.created_at == before.created_at
    assert rest.ring_after > before.created_at


def test_a_job_ends_with_the_last_rest_of_its_chunks(ledger, make_job, worker):
    job = make_job([8])
    claim = worker.must_claim(job.chunks[0])
    for left in (6, 1):
        rest_id = leave(ledger, claim, claim.images - left)
        with ledger.reading() as connection:
            state = connection.execute(sa.select(jobs).where(jobs.c.id == job.id)).one()
        assert (state.state, state.succeeded) == ("running", 8 - left)
        [*_, rest] = rows(ledger, job.id)
        claim = worker.must_claim(type(job.chunks[0])(rest_id, rest.first_index, left, "", ""))
        assert (claim.images, claim.payload_offset) == (left, 8 - left)
    worker.finish(claim)
    with ledger.reading() as connection:
        state = connection.execute(sa.select(jobs).where(jobs.c.id == job.id)).one()
    assert (state.state, state.succeeded, state.chunks, state.chunks_done) == ("done", 8, 3, 3)


def test_who_lost_the_chunk_cannot_leave_it(ledger, make_job, new_worker):
    job = make_job([4])
    late = new_worker("late").must_claim(job.chunks[0], lease_seconds=-1)
    new_worker("second").must_claim(job.chunks[0])
    with pytest.raises(LeaseLost):
        leave(ledger, late, 2)
    assert sizes(ledger, job.id) == [("claimed", 4)]


@pytest.mark.parametrize("how", ["cancelled", "too many errors", "paused"])
def test_nobody_works_on_what_is_left_of_a_job_that_goes_on_no_more(ledger, make_job, worker, how):
    job = make_job([4])
    claim = worker.must_claim(job.chunks[0])
    with ledger.transaction() as connection:
        if how == "cancelled":
            end_job(connection, job.id, JobState.CANCELLED)
        elif how == "paused":
            pause_job(connection, job.id)
        else:
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(error_limit=1))

    rest_id = leave(ledger, claim, 2, error=ErrorCode.CORRUPT if how == "too many errors" else None)

    rest = type(job.chunks[0])(rest_id, 2, 2, "", "")
    assert worker.claim(rest) is None
    with ledger.transaction() as connection:  # as the reconciler does
        drop_leftover_chunks(connection)
        hold_leftover_chunks(connection)
    expected = ChunkState.HELD if how == "paused" else ChunkState.DROPPED
    assert sizes(ledger, job.id) == [("done", 2), (expected, 2)]


@pytest.mark.parametrize(("done", "rest_id"), [(0, "rest"), (4, "rest"), (5, "rest"), (3, None), (5, None)])
def test_outcomes_that_are_missing_or_too_many_are_refused(ledger, make_job, worker, done, rest_id):
    claim = worker.must_claim(make_job([4]).chunks[0])
    classified = Classified(claim, [Outcome("a", "7", 0.5)] * done, None, rest_id)
    with pytest.raises(ValueError, match=f"{done} outcomes"), ledger.transaction() as connection:
        record_outcomes(connection, [classified])
