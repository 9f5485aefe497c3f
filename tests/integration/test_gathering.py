"""Small jobs are classified many at a time, and each is alone where one of them goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from jobs.ledger.gathering import MAX_GATHERED, gather_chunks, may_gather, oldest_small, overdue_small
from jobs.ledger.intake import NewChunk, add_chunk, open_job, seal_job
from jobs.ledger.outcomes import Classified, record_outcomes
from jobs.ledger.pausing import pause_job
from jobs.ledger.waiting import who_waits

from jobs.errors import ErrorCode, LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import Claim, bury_claim, claim_chunk, withdraw_claim
from jobs.ledger.progress import Filter, job_status, stream_predictions
from jobs.ledger.workers import GONE_SECONDS, Presence, report_worker
from jobs.outcomes import Outcome
from jobs.queue import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.schema import SMALL_JOB_IMAGES, ChunkState, JobState, chunks, db_now, workers
from jobs.schema import jobs as jobs_table
from tests.bench_alone import Mill, picture
from worker.predicting import pipeline
from worker.predicting.pipeline import GATHERED_IMAGES, classify_chunk


def gather(
    ledger: Ledger, chunk: NewChunk, *, images: int = 512, leave_out: Callable[[str], bool] | None = None
) -> list[Claim]:
    """Claims the chunk, and others with it; that one comes first."""
    with ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk.id, lease_seconds=60, owner="anna")
        assert claim is not None
        return [
            claim,
            *gather_chunks(
                connection, claim, images=images, lease_seconds=60, owner="anna", leave_out=leave_out
            ),
        ]


def ids(claims: Sequence[Claim]) -> set[str]:
    return {claim.chunk_id for claim in claims}


def state_of(ledger: Ledger, chunk: NewChunk) -> tuple[str, int, int, int]:
    """Its state, attempts, crashes and releases."""
    row = sa.select(chunks.c.state, chunks.c.attempts, chunks.c.crashes, chunks.c.releases)
    with ledger.reading() as connection:
        return tuple(connection.execute(row.where(chunks.c.id == chunk.id)).one())  # type: ignore[return-value]


def sevens(claim: Claim) -> list[Outcome]:
    return [Outcome(f"{place}.png", "7", 0.5) for place in range(claim.images)]


# ---- what is gathered -------------------------------------------------------------------------------------


def test_other_small_jobs_come_along_under_one_token(ledger, make_job):
    jobs = [make_job([size]) for size in (1, 2, SMALL_JOB_IMAGES, 1)]

    claims = gather(ledger, jobs[3].chunks[0])

    assert ids(claims) == {job.chunks[0].id for job in jobs}
    assert len({claim.token for claim in claims}) == 1
    assert {(claim.job_id, claim.images, claim.attempts) for claim in claims} == {
        (job.id, job.chunks[0].images, 1) for job in jobs
    }
    for job in jobs:
        assert state_of(ledger, job.chunks[0]) == (ChunkState.CLAIMED, 1, 0, 0)


def test_the_oldest_come_first_and_no_more_than_there_is_room_for(ledger, make_job):
    jobs = [make_job([3]) for _ in range(5)]

    claims = gather(ledger, jobs[4].chunks[0], images=8)

    assert ids(claims) == {jobs[4].chunks[0].id, jobs[0].chunks[0].id, jobs[1].chunks[0].id}


def test_what_is_not_small_fresh_and_free_is_left_alone(ledger, make_job, make_model, worker):
    lead = make_job([1])
    others = {
        "large": make_job([SMALL_JOB_IMAGES + 1]),
        "of a larger job": make_job([1, 1]),
        "still coming in": make_job([1], sealed=False),
        "paused": make_job([1]),
        "given back": make_job([1]),
        "crashed": make_job([1]),
        "somebody's": make_job([1]),
        "done": make_job([1]),
    }
    with ledger.transaction() as connection:
        assert pause_job(connection, others["paused"].id)
        # As a half of a chunk that crashed: never tried itself, and suspected.
        suspect = others["crashed"].chunks[0].id
        connection.execute(chunks.update().where(chunks.c.id == suspect).values(crash_code="quarantined"))
    worker.release(worker.must_claim(others["given back"].chunks[0]))
    worker.must_claim(others["somebody's"].chunks[0])
    worker.work(others["done"].chunks[0])
    model = make_model(b"another")
    with ledger.transaction() as connection:
        job_id = new_id()
        open_job(connection, job_id, model_id=model.id, key=None)
        add_chunk(connection, job_id, NewChunk(new_id(), 0, 1, "a", "0" * 64))
        seal_job(connection, job_id, fingerprint=None)

    assert ids(gather(ledger, lead.chunks[0])) == {lead.chunks[0].id}


def test_what_was_tried_before_gathers_nothing(make_job, worker):
    job = make_job([1])
    assert may_gather(worker.must_claim(job.chunks[0], lease_seconds=-1))
    assert not may_gather(worker.must_claim(job.chunks[0]))
    assert not may_gather(worker.must_claim(make_job([SMALL_JOB_IMAGES + 1]).chunks[0]))


def test_what_is_to_be_left_out_is(ledger, make_job):
    jobs = [make_job([1]) for _ in range(3)]
    left_out = jobs[1].chunks[0].id

    claims = gather(ledger, jobs[0].chunks[0], leave_out=lambda chunk_id: chunk_id == left_out)

    assert ids(claims) == {jobs[0].chunks[0].id, jobs[2].chunks[0].id}


def test_the_others_are_left_their_share(ledger, make_job):
    # Given two workers with five processes, and a trainer, which does not classify
    with ledger.transaction() as connection:
        for name, queue, children in (
            ("a/1", CLASSIFY_QUEUE, ["a/2", "a/3"]),
            ("b/1", CLASSIFY_QUEUE, ["b/2", "b/3", "b/4"]),
            ("c/1", RETRAIN_QUEUE, ["c/2"]),
        ):
            report_worker(connection, Presence(name, name, queue, children, "0"), up_seconds=1)
        # and one that was killed, whose row is still there
        report_worker(connection, Presence("d/1", "d/1", CLASSIFY_QUEUE, ["d/2"] * 9, "0"), up_seconds=1)
        connection.execute(
            workers.update().where(workers.c.name == "d/1").values(seen_at=db_now(-GONE_SECONDS - 5))
        )
    jobs = [make_job([1]) for _ in range(12)]

    # When one of them gathers, Then it takes a fifth of the eleven that wait beside its own, and no less
    assert len(gather(ledger, jobs[0].chunks[0])) == 1 + 3


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_what_somebody_else_is_about_to_take_is_passed_over(ledger, make_job, new_worker):
    jobs = [make_job([1]) for _ in range(3)]
    other = new_worker("ben")
    with other.ledger.transaction() as connection:
        claim_chunk(connection, jobs[1].chunks[0].id, lease_seconds=60, owner="ben")
        assert ids(gather(ledger, jobs[0].chunks[0])) == {jobs[0].chunks[0].id, jobs[2].chunks[0].id}


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_what_somebody_is_about_to_take_is_not_rung_for(ledger, make_job, new_worker):
    first, second = (make_job([1]).chunks[0].id for _ in range(2))
    with new_worker("ben").ledger.transaction() as theirs:
        claim_chunk(theirs, first, lease_seconds=60, owner="ben")
        with ledger.transaction() as ours:
            assert oldest_small(ours) == second


def test_small_jobs_are_found_by_an_index_whatever_waits_before_them(ledger, make_job):
    # Given many chunks of a large job that wait before a few small ones, and as many small that are done:
    # so the database takes many of those that wait for small, and finds them strewn by their times
    later = datetime.now(UTC) + timedelta(hours=1)
    done = {"job_id": make_job([99]).id, "first_index": 0, "images": 1, "payload": "", "payload_sha256": ""}
    done |= {"state": ChunkState.DONE, "attempts": 1, "created_at": later, "finished_at": later}
    with ledger.transaction() as connection:
        connection.execute(chunks.insert(), [done | {"id": new_id()} for _ in range(3_000)])
    make_job([SMALL_JOB_IMAGES + 1] * 3_000)
    jobs = [make_job([1]) for _ in range(3)]
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")
    statements: list[tuple[str, object]] = []
    sa.event.listen(
        ledger.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, *_: statements.append((statement, parameters)),
    )
    assert len(gather(ledger, jobs[0].chunks[0])) == 3
    with ledger.transaction() as connection:
        assert oldest_small(connection) is None
        assert overdue_small(connection) is None
        assert who_waits(connection, seconds=1, after=None).small is None

    # When their statements are explained
    looks = [(text, values) for text, values in statements if "crash_code IS NULL" in text]
    assert len(looks) == 5
    explain = "EXPLAIN QUERY PLAN " if ledger.is_sqlite else "EXPLAIN "
    with ledger.reading() as connection:
        for text, values in looks:
            plan = "\n".join(map(str, connection.exec_driver_sql(explain + text, values)))  # type: ignore[arg-type]

            # Then it is the one for this
            assert "ix_chunks_fresh_small" in plan, plan
            assert "ix_chunks_open" not in plan, plan


# ---- what becomes of them ---------------------------------------------------------------------------------


def test_a_dead_process_is_buried_with_all_that_it_had_gathered(ledger, make_job):
    jobs = [make_job([1]) for _ in range(3)]
    mine = make_job([1])
    claims = gather(ledger, jobs[0].chunks[0])
    assert len(claims) == 4

    with ledger.transaction() as connection:
        named = jobs[0].chunks[0].id
        bury_claim(connection, named, owner="ben", code=ErrorCode.QUARANTINED, error="somebody else died")
    assert state_of(ledger, mine.chunks[0]) == (ChunkState.CLAIMED, 1, 0, 0)
    with ledger.transaction() as connection:
        bury_claim(connection, named, owner="anna", code=ErrorCode.QUARANTINED, error="it died")

    for job in (*jobs, mine):
        assert state_of(ledger, job.chunks[0]) == (ChunkState.PENDING, 1, 1, 0)
    # And next time each of them is alone
    assert len(gather(ledger, jobs[0].chunks[0])) == 1


def test_what_was_claimed_in_a_commit_that_broke_off_is_withdrawn_with_it(ledger, make_job):
    jobs = [make_job([1]) for _ in range(3)]
    claims = gather(ledger, jobs[0].chunks[0])

    with ledger.transaction() as connection:
        withdraw_claim(connection, claims[0].token)

    for job in jobs:
        assert state_of(ledger, job.chunks[0]) == (ChunkState.PENDING, 1, 0, 1)


def test_all_are_recorded_in_one_transaction(ledger, make_job):
    jobs = [make_job([size]) for size in (1, 2, 3)]
    claims = gather(ledger, jobs[0].chunks[0])

    with ledger.transaction() as connection:
        ours = record_outcomes(connection, [Classified(claim, sevens(claim)) for claim in claims])

    assert ours == ids(claims)
    for job, images in zip(jobs, (1, 2, 3), strict=True):
        with ledger.reading() as connection:
            status = job_status(connection, job.id)
        assert (status.state, status.succeeded, status.failed) == (JobState.DONE, images, 0)
        assert status.started_at is not None
        assert len(list(stream_predictions(ledger, job.id, Filter()))) == images


def test_of_a_chunk_that_was_lost_nothing_is_recorded_and_of_the_others_all(ledger, make_job, worker):
    # Given three that were gathered, of which somebody else has one by now
    jobs = [make_job([1]) for _ in range(3)]
    claims = gather(ledger, jobs[0].chunks[0])
    with ledger.transaction() as connection:
        lost = chunks.c.id == jobs[1].chunks[0].id
        connection.execute(chunks.update().where(lost).values(lease_until=datetime(2000, 1, 1, tzinfo=UTC)))
    theirs = worker.must_claim(jobs[1].chunks[0])

    # When all are recorded, Then two are, and the third is the other's
    with ledger.transaction() as connection:
        ours = record_outcomes(connection, [Classified(claim, sevens(claim)) for claim in claims])
    assert ours == {jobs[0].chunks[0].id, jobs[2].chunks[0].id}
    assert not list(stream_predictions(ledger, jobs[1].id, Filter()))
    worker.finish(theirs)
    for job in jobs:
        assert [each.label for each in stream_predictions(ledger, job.id, Filter())] == ["7"]

    # And where all are lost, that is said
    with pytest.raises(LeaseLost), ledger.transaction() as connection:
        record_outcomes(connection, [Classified(claim, sevens(claim)) for claim in claims])


# ---- by a worker ------------------------------------------------------------------------------------------


def test_many_small_jobs_are_one_batch_and_each_gets_its_own_answers(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what the model says of some pictures, each classified with its own job alone
    contents = [[picture(3 * number + place) for place in range(number % 3 + 1)] for number in range(30)]
    alone = []
    for each in contents:
        job_id, chunk_id = mill.job(each)
        assert classify_chunk(chunk_id, mill.bench) == len(each)
        alone.append(mill.answers(job_id))
    assert len({label for answers in alone for _, label, _ in answers}) > 1

    # When the same wait as thirty jobs, and a worker gets the message of one
    sizes: list[int] = []
    predict = mill.bench.classifier(mill.model.id).predict
    monkeypatch.setattr(
        mill.bench.classifier(mill.model.id),
        "predict",
        lambda pixels: sizes.append(len(pixels)) or predict(pixels),
    )
    jobs = [mill.job(each) for each in contents]
    total = sum(map(len, contents))
    assert classify_chunk(jobs[17][1], mill.bench) == total

    # Then all are done, in one batch, and none has the answer of another
    assert sizes == [total]
    assert [mill.answers(job_id) for job_id, _ in jobs] == alone
    assert not any(classify_chunk(chunk_id, mill.bench) for _, chunk_id in jobs)


def test_no_more_is_gathered_than_one_batch_holds(mill: Mill) -> None:
    jobs = [mill.job([picture(1)] * SMALL_JOB_IMAGES) for _ in range(GATHERED_IMAGES // SMALL_JOB_IMAGES + 1)]
    assert classify_chunk(jobs[0][1], mill.bench) == GATHERED_IMAGES <= MAX_GATHERED
    assert len(mill.pending()) == 1


def test_whoever_handles_a_message_rings_for_the_small_job_that_waited_longest(
    mill: Mill, rung: Callable[[], list[str]]
) -> None:
    # Given small jobs that have no message
    full = [mill.job([picture(1)] * SMALL_JOB_IMAGES)[1] for _ in range(GATHERED_IMAGES // SMALL_JOB_IMAGES)]
    left = mill.job([picture(1)])[1]
    later = mill.job([picture(1)])[1]
    large = mill.job([picture(1)] * (SMALL_JOB_IMAGES + 1))[1]
    assert rung() == []

    # When a process takes as many of them as it may, Then it rings for the next
    assert classify_chunk(full[-1], mill.bench) == GATHERED_IMAGES
    assert rung() == [left]

    # And so it does where its message is of one that is done; where it is of a large one, it has other work
    assert classify_chunk(full[0], mill.bench) == 0
    assert rung() == [left]
    assert classify_chunk(large, mill.bench) == SMALL_JOB_IMAGES + 1
    assert rung() == []

    # And where all are done, nothing is rung for
    assert classify_chunk(later, mill.bench) == 2
    assert classify_chunk(left, mill.bench) == 0
    assert rung() == []


def test_a_bad_image_costs_its_neighbours_in_other_jobs_nothing(mill: Mill) -> None:
    good, bad, mixed = (
        mill.job([picture(1)]),
        mill.job([b"no picture"]),
        mill.job([b"none", picture(2)]),
    )

    assert classify_chunk(bad[1], mill.bench) == 4

    assert [error for _, _, error in mill.answers(good[0])] == [None]
    assert [error for _, _, error in mill.answers(bad[0])] == ["unidentified"]
    assert [error for _, _, error in mill.answers(mixed[0])] == ["unidentified", None]
    assert [mill.status(job_id).failed for job_id, _ in (good, bad, mixed)] == [0, 1, 1]


@pytest.mark.parametrize("lead", [0, 1])
def test_a_payload_that_is_gone_fails_its_own_job_alone(mill: Mill, lead: int) -> None:
    jobs = [mill.job([picture(1)]), mill.job([picture(2)], gone=True), mill.job([picture(3)])]

    assert classify_chunk(jobs[lead][1], mill.bench) == 2

    assert [mill.status(job_id).state for job_id, _ in jobs] == [
        JobState.DONE,
        JobState.FAILED,
        JobState.DONE,
    ]
    assert mill.status(jobs[1][0]).error is not None


def test_what_is_given_back_is_taken_alone_from_then_on(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a store that is away in the middle of what was gathered
    jobs = [mill.job([picture(number)]) for number in range(4)]
    read, reads = pipeline.read_payload, []

    def fail_at_the_third(*args: object, **kwargs: object) -> object:
        reads.append(args)
        if len(reads) == 3:
            raise Unavailable("The store cannot be reached.")
        return read(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "read_payload", fail_at_the_third)
    assert classify_chunk(jobs[0][1], mill.bench) == 0
    assert len(mill.pending()) == 4

    # When it is back, Then each is classified by its own message, and no crash was counted
    for job_id, chunk_id in jobs:
        assert classify_chunk(chunk_id, mill.bench) == 1
        assert mill.status(job_id).state == JobState.DONE
    with mill.ledger.reading() as connection:
        assert set(connection.scalars(sa.select(chunks.c.crashes))) == {0}


def test_a_mistake_of_ours_is_a_crash_of_each_and_none_is_tried_with_another_again(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [mill.job([picture(number)]) for number in range(3)]
    real = pipeline.classify_payloads
    monkeypatch.setattr(pipeline, "classify_payloads", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        classify_chunk(jobs[0][1], mill.bench)
    with mill.ledger.reading() as connection:
        assert list(connection.scalars(sa.select(chunks.c.crashes))) == [1, 1, 1]

    monkeypatch.setattr(pipeline, "classify_payloads", real)
    for _, chunk_id in jobs:
        assert classify_chunk(chunk_id, mill.bench) == 1


def test_one_error_too_many_stops_its_own_job_alone(mill: Mill) -> None:
    stopped, other = mill.job([b"no picture"]), mill.job([picture(1)])
    with mill.ledger.transaction() as connection:
        connection.execute(jobs_table.update().where(jobs_table.c.id == stopped[0]).values(error_limit=0))

    assert classify_chunk(other[1], mill.bench) == 2

    assert mill.status(stopped[0]).state == JobState.FAILED
    assert "more than its limit of 0" in str(mill.status(stopped[0]).error)
    assert mill.status(other[0]).state == JobState.DONE
