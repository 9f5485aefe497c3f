"""A chunk's results are recorded whole or not at all, once, and by its owner; the last ones end the job."""

from __future__ import annotations

import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from psycopg.errors import UniqueViolation

from jobs.errors import ErrorCode, LeaseLost, Stopped, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.control import end_job
from jobs.ledger.queries import Filter, JobStatus, Prediction, job_status, page_of_predictions
from jobs.ledger.results import Classified, record_results
from jobs.ledger.submission import NewChunk, add_chunk, discard_job, seal_job
from jobs.schema import ChunkState, JobState, chunks, jobs, predictions
from tests.outcomes import Outcome, to_columns

EVERYTHING = Filter()


def status_of(ledger: Ledger, job) -> JobStatus:
    with ledger.reading() as connection:
        return job_status(connection, job.id)


def counters_of(ledger: Ledger, job) -> tuple[JobState, int, int, int]:
    status = status_of(ledger, job)
    return status.state, status.total, status.succeeded, status.failed


def predictions_of(ledger: Ledger, job) -> list[Prediction]:
    with ledger.reading() as connection:
        return page_of_predictions(connection, job.id, EVERYTHING, after=-1, limit=10_000)


def chunk_states_of(ledger: Ledger, job) -> list[ChunkState]:
    with ledger.reading() as connection:
        query = sa.select(chunks.c.state).where(chunks.c.job_id == job.id).order_by(chunks.c.first_index)
        return [ChunkState(state) for state in connection.scalars(query)]


def seal(ledger: Ledger, job) -> None:
    with ledger.transaction() as connection:
        seal_job(connection, job.id, fingerprint=None)


def stop(ledger: Ledger, job, state: JobState = JobState.CANCELLED, error: str | None = None) -> bool:
    with ledger.transaction() as connection:
        return end_job(connection, job.id, state, error=error)


def discard(ledger: Ledger, job) -> None:
    with ledger.transaction() as connection:
        discard_job(connection, job.id)


def rows_left(ledger: Ledger) -> dict[str, int]:
    with ledger.reading() as connection:
        return {
            table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in (jobs, chunks, predictions)
        }


def sevens(*names: str) -> list[Outcome]:
    return [Outcome(name, "7", 0.75) for name in names]


# ---- what is recorded ---------------------------------------------------------------------------------


def test_each_image_has_its_outcome_at_its_place(ledger, make_job, champion, worker):
    # Given a job of two chunks
    job = make_job([1, 2])

    # When the second is finished, with one unreadable image
    outcomes = [
        Outcome("b.png", "7", 0.9375),
        Outcome("c.png", None, None, ErrorCode.CORRUPT, "truncated after 12 bytes"),
    ]
    worker.work(job.chunks[1], outcomes)

    # Then the rows have the images' indices in the job, and its model
    assert predictions_of(ledger, job) == [
        Prediction(1, "b.png", "7", 0.9375, None, None, champion.id),
        Prediction(2, "c.png", None, None, ErrorCode.CORRUPT, "truncated after 12 bytes", champion.id),
    ]
    # And the counters include them
    assert counters_of(ledger, job) == (JobState.RUNNING, 3, 1, 1)
    assert chunk_states_of(ledger, job) == [ChunkState.PENDING, ChunkState.DONE]


#: Names that COPY's text format, SQL quoting or a terminal might misread.
AWKWARD_NAMES = [
    "a b.png",
    "two\nlines.png",
    "carriage\rreturn.png",
    "tab\tstop.png",
    "back\\slash.png",
    r"\N",
    r"\.",
    "\\",
    r"\n\t\\x41",
    'it\'s "quoted".png',
    "semi;colon,comma.png",
    "%s %d %% {} ?.png",
    ":name",
    "手書き数字/七.png",
    "🖋️ café.png",
    "\x01\x1b[31m\x7f.png",
    "",
    " ",
    "x" * 1_000_000,
]


def test_a_name_comes_back_as_it_was(ledger, make_job, worker):
    # Given images with awkward names, and labels and details that are as awkward
    labelled = [Outcome(name, name, 0.5) for name in AWKWARD_NAMES]
    failed = [Outcome(name, None, None, ErrorCode.CORRUPT, name) for name in AWKWARD_NAMES]
    job = make_job([len(AWKWARD_NAMES)] * 2)

    # When they are recorded
    worker.work(job.chunks[0], labelled)
    worker.work(job.chunks[1], failed)

    # Then every character is unchanged
    found = predictions_of(ledger, job)
    assert [outcome.name for outcome in found] == AWKWARD_NAMES * 2
    assert [outcome.label for outcome in found] == AWKWARD_NAMES + [None] * len(AWKWARD_NAMES)
    assert [outcome.detail for outcome in found] == [None] * len(AWKWARD_NAMES) + AWKWARD_NAMES


def test_a_confidence_comes_back_as_the_float32_it_was(ledger, make_job, worker):
    # Given confidences as a model returns them, rounded as in the pipeline
    exact = [struct.unpack("f", struct.pack("f", 1 / number))[0] for number in range(1, 200)]
    job = make_job([len(exact)])

    # When they are recorded
    outcomes = [Outcome(f"{value}", "1", round(value, 7)) for value in exact]
    worker.work(job.chunks[0], outcomes)

    # Then they are returned with the precision of a float32
    found = [prediction.confidence for prediction in predictions_of(ledger, job)]
    assert found == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_chunk_is_recorded_whole_or_not_at_all(ledger, make_job, worker, count):
    # Given a claim on three images
    job = make_job([3])
    claim = worker.must_claim(job.chunks[0])

    # When there are too few or too many outcomes
    with pytest.raises(ValueError, match="outcomes for a chunk of 3"):
        worker.finish(claim, sevens(*["x"] * count))

    # Then nothing has changed, and the right number is accepted
    assert counters_of(ledger, job) == (JobState.RUNNING, 3, 0, 0)
    worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.DONE, 3, 3, 0)


def test_a_mistake_in_the_middle_leaves_nothing(ledger, make_job, worker):
    # Given a claim on two images
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0])

    # When the second outcome cannot be stored, because its confidence is not a number
    outcomes = [Outcome("a.png", "7", 0.5), Outcome("b.png", "7", object())]  # type: ignore[arg-type]
    with pytest.raises((sa.exc.ProgrammingError, sa.exc.InterfaceError, TypeError), match="object"):
        worker.finish(claim, outcomes)

    # Then the first is not stored either, and the chunk is still claimed
    assert predictions_of(ledger, job) == []
    assert counters_of(ledger, job) == (JobState.RUNNING, 2, 0, 0)
    assert chunk_states_of(ledger, job) == [ChunkState.CLAIMED]


def test_the_primary_key_is_the_last_guard(ledger, make_job, worker):
    # Given a finished chunk that was made claimable again by mistake
    job = make_job([2])
    worker.work(job.chunks[0])
    with ledger.transaction() as connection:
        connection.execute(chunks.update().values(state=ChunkState.PENDING))
        connection.execute(jobs.update().values(state=JobState.RUNNING))

    # When it is classified again, Then the database itself refuses a second outcome
    with pytest.raises((UniqueViolation, Exception), match=r"(?i)unique"):
        worker.work(job.chunks[0], sevens("other", "names"))

    # And the first outcomes remain, counted once
    assert [prediction.name for prediction in predictions_of(ledger, job)] == ["0.png", "1.png"]
    assert counters_of(ledger, job) == (JobState.RUNNING, 2, 2, 0)


# ---- the fence ----------------------------------------------------------------------------------------


def test_who_lost_the_chunk_records_nothing_while_another_is_at_it(ledger, make_job, new_worker):
    # Given a worker whose lease has expired, and another one that has claimed its chunk
    job = make_job([2])
    slow, other = new_worker("anna"), new_worker("ben")
    lost = slow.must_claim(job.chunks[0], lease_seconds=-1)
    theirs = other.must_claim(job.chunks[0])

    # When the first one records its results
    with pytest.raises(LeaseLost):
        slow.finish(lost, sevens("late", "late"))

    # Then none of them is stored or counted
    assert predictions_of(ledger, job) == []
    assert counters_of(ledger, job) == (JobState.RUNNING, 2, 0, 0)

    # And the other worker's results are accepted
    other.finish(theirs)
    assert counters_of(ledger, job) == (JobState.DONE, 2, 2, 0)


def test_who_lost_the_chunk_records_nothing_after_another_has(ledger, make_job, new_worker):
    # Given a chunk that another worker has claimed and finished
    job = make_job([2])
    slow, other = new_worker("anna"), new_worker("ben")
    lost = slow.must_claim(job.chunks[0], lease_seconds=-1)
    other.work(job.chunks[0])

    # When its first worker records its results
    with pytest.raises(LeaseLost):
        slow.finish(lost, sevens("late", "late"))

    # Then the other worker's results remain, counted once
    assert [prediction.name for prediction in predictions_of(ledger, job)] == ["0.png", "1.png"]
    assert counters_of(ledger, job) == (JobState.DONE, 2, 2, 0)


def test_results_after_the_lease_are_taken_where_nobody_else_came(ledger, make_job, worker):
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0], lease_seconds=-1)
    worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.DONE, 2, 2, 0)


def test_results_after_giving_back_are_refused(ledger, make_job, worker):
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0])
    worker.release(claim)
    with pytest.raises(LeaseLost):
        worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.RUNNING, 2, 0, 0)


def test_the_same_results_twice_are_recorded_once(ledger, make_job, worker):
    # Given a worker that does not know whether its COMMIT took effect
    job = make_job([2, 1])
    claim = worker.must_claim(job.chunks[0])
    worker.finish(claim)

    # When it records again, Then nothing is stored or counted twice
    worker.finish(claim)
    assert [prediction.name for prediction in predictions_of(ledger, job)] == ["0.png", "1.png"]
    assert counters_of(ledger, job) == (JobState.RUNNING, 3, 2, 0)


def test_two_finish_the_same_chunk_at_the_same_moment(ledger, make_job, new_worker):
    # Given 10 chunks, each of which two workers try to record
    job = make_job([3] * 10)
    slow, other = new_worker("anna"), new_worker("ben")
    lost = [slow.must_claim(chunk, lease_seconds=-1) for chunk in job.chunks]
    held = [other.must_claim(chunk) for chunk in job.chunks]
    start = threading.Barrier(2, timeout=30)

    def finish_all(worker, claims):
        refused = 0
        start.wait()
        for claim in claims:
            try:
                worker.finish(claim)
            except LeaseLost:
                refused += 1
        return refused

    # When both record at the same time
    with ThreadPoolExecutor(2) as pool:
        refused = list(pool.map(finish_all, [slow, other], [lost, held]))

    # Then the owner's results are recorded once, and the other's are all refused
    assert refused == [10, 0]
    assert counters_of(ledger, job) == (JobState.DONE, 30, 30, 0)


# ---- when a job is done -------------------------------------------------------------------------------


def test_a_job_is_done_with_its_last_chunk(ledger, make_job, worker):
    # Given a sealed job of two chunks
    job = make_job([2, 1])

    # When the first one to finish is done, Then the job goes on
    worker.work(job.chunks[1])
    assert status_of(ledger, job).state == JobState.RUNNING
    assert status_of(ledger, job).finished_at is None

    # When the other one is finished, Then the job is done
    worker.work(job.chunks[0])
    status = status_of(ledger, job)
    assert status.state == JobState.DONE
    assert status.finished_at is not None
    assert status.finished_at >= status.started_at >= status.submitted_at


def test_a_job_whose_workers_are_faster_than_its_producer_is_done_when_it_is_sealed(ledger, make_job, worker):
    # Given a job that is still being submitted, with all its chunks done
    job = make_job([2, 1], sealed=False)
    for chunk in job.chunks:
        worker.work(chunk)
    assert counters_of(ledger, job) == (JobState.RECEIVING, 3, 3, 0)

    # When its producer seals it, Then the job is done
    seal(ledger, job)
    status = status_of(ledger, job)
    assert status.state == JobState.DONE
    assert status.finished_at is not None


def test_a_job_sealed_halfway_is_done_with_its_last_chunk(ledger, make_job, worker):
    job = make_job([2, 1], sealed=False)
    worker.work(job.chunks[0])
    seal(ledger, job)
    assert status_of(ledger, job).state == JobState.RUNNING
    worker.work(job.chunks[1])
    assert status_of(ledger, job).state == JobState.DONE


@pytest.mark.parametrize("trial", range(3))
def test_whoever_comes_last_the_job_is_done(ledger, make_job, new_worker, trial):  # noqa: ARG001 -- a repeat
    # Given a job of 12 chunks that is about to be sealed, and four workers with three claims each
    job = make_job([2] * 12, sealed=False)
    workers = [new_worker(f"worker {number}") for number in range(4)]
    claims = [worker.must_claim(chunk) for chunk, worker in zip(job.chunks, workers * 3, strict=True)]
    start = threading.Barrier(5, timeout=30)

    def finish_mine(number):
        start.wait()
        for claim in claims[number::4]:
            workers[number].finish(claim)

    def seal_it(_number):
        start.wait()
        seal(ledger, job)

    # When all of it happens at once
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda step: step[0](step[1]), [(finish_mine, n) for n in range(4)] + [(seal_it, 4)]))

    # Then the job is done, and every image was counted once
    assert counters_of(ledger, job) == (JobState.DONE, 24, 24, 0)
    assert len(predictions_of(ledger, job)) == 24


def test_a_job_is_sealed_once(ledger, make_job):
    job = make_job([1])
    with pytest.raises(Stopped):
        seal(ledger, job)


# ---- a job that is stopped ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error"), [(JobState.CANCELLED, None), (JobState.FAILED, "its model is gone")]
)
def test_a_stopped_job_keeps_what_it_has(ledger, make_job, worker, state, error):
    # Given a job with one chunk done, one claimed, and one pending
    job = make_job([2, 1, 4])
    worker.work(job.chunks[0])
    claim = worker.must_claim(job.chunks[1])

    # When it is stopped
    assert stop(ledger, job, state, error)

    # Then the finished chunk stays, and the pending one is dropped
    status = status_of(ledger, job)
    assert (status.state, status.error, status.succeeded) == (state, error, 2)
    assert status.finished_at is not None
    assert status.oldest_waiting_at is None
    assert len(predictions_of(ledger, job)) == 2
    assert chunk_states_of(ledger, job) == [ChunkState.DONE, ChunkState.CLAIMED, ChunkState.DROPPED]
    assert worker.claim(job.chunks[2]) is None

    # And the claimed chunk can still be recorded, but the job stays stopped
    worker.finish(claim)
    assert counters_of(ledger, job) == (state, 7, 3, 0)
    assert len(predictions_of(ledger, job)) == 3


def test_a_stopped_job_stays_stopped_even_when_all_its_chunks_are_done(ledger, make_job, worker):
    # Given a job whose only chunk was claimed when it was cancelled
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0])
    stop(ledger, job)
    cancelled_at = status_of(ledger, job).finished_at

    # When the chunk is finished, Then the job is still cancelled, with the same end time
    worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.CANCELLED, 2, 2, 0)
    assert status_of(ledger, job).finished_at == cancelled_at


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_a_chunk_given_back_after_its_job_was_stopped_is_dropped(ledger, make_job, worker, state):
    # Given a claimed chunk of a job that is stopped
    job = make_job([1, 1])
    claim = worker.must_claim(job.chunks[0])
    stop(ledger, job, state)

    # When the chunk is released, Then it cannot be claimed again
    worker.release(claim)
    assert chunk_states_of(ledger, job) == [ChunkState.DROPPED, ChunkState.DROPPED]
    assert worker.claim(job.chunks[0]) is None


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_a_chunk_whose_worker_died_is_not_claimed_after_its_job_was_stopped(ledger, make_job, worker, state):
    # Given a chunk whose lease has expired, and whose job is stopped
    job = make_job([1])
    worker.must_claim(job.chunks[0], lease_seconds=-1)
    stop(ledger, job, state)

    # When another worker asks for it, Then it cannot be claimed
    assert worker.claim(job.chunks[0]) is None


def test_what_has_finished_cannot_be_stopped(ledger, make_job, worker):
    # Given a job that is done
    job = make_job([2])
    worker.work(job.chunks[0])
    done = status_of(ledger, job)

    # When somebody stops it, Then that is refused, and nothing changes
    assert not stop(ledger, job, JobState.FAILED, "no")
    now = status_of(ledger, job)
    assert (now.state, now.error, now.finished_at) == (JobState.DONE, None, done.finished_at)


def test_a_job_is_stopped_once(ledger, make_job):
    job = make_job([2])
    assert stop(ledger, job, JobState.CANCELLED)
    assert not stop(ledger, job, JobState.FAILED, "no")
    assert status_of(ledger, job).state == JobState.CANCELLED


def test_a_job_can_be_stopped_while_it_is_received(ledger, make_job):
    # Given a job that is still being submitted
    job = make_job([2], sealed=False)

    # When somebody cancels it
    assert stop(ledger, job)

    # Then its producer gets an error with the next chunk, or when it seals the job, and adds nothing
    with pytest.raises(Stopped, match="stopped"), ledger.transaction() as connection:
        add_chunk(connection, job.id, NewChunk(new_id(), 2, 1, "payloads/x", "0" * 64))
    with pytest.raises(Stopped, match="stopped"):
        seal(ledger, job)
    assert counters_of(ledger, job) == (JobState.CANCELLED, 2, 0, 0)
    assert chunk_states_of(ledger, job) == [ChunkState.DROPPED]


# ---- a job that is discarded --------------------------------------------------------------------------


def test_a_job_taken_back_leaves_nothing(ledger, make_job, worker):
    # Given a job that is not sealed, with one chunk done, one claimed and one pending
    job = make_job([2, 1, 1], sealed=False, key="mine")
    worker.work(job.chunks[0])
    claim = worker.must_claim(job.chunks[1])
    other = make_job([1])

    # When it is discarded
    discard(ledger, job)

    # Then nothing of it is left, and the other job is complete
    assert rows_left(ledger) == {"jobs": 1, "chunks": 1, "predictions": 0}
    assert status_of(ledger, other).total == 1

    # And a worker that has a claim cannot record
    with pytest.raises(LeaseLost):
        worker.finish(claim)
    assert rows_left(ledger) == {"jobs": 1, "chunks": 1, "predictions": 0}

    # And its key can be used again
    make_job([1], key="mine")


def test_a_sealed_job_is_not_taken_back(ledger, make_job, worker):
    # Given a submitted job
    job = make_job([2, 1])
    worker.work(job.chunks[0])

    # When somebody tries to discard it, Then all of it stays
    discard(ledger, job)
    assert rows_left(ledger) == {"jobs": 1, "chunks": 2, "predictions": 2}


# ---- a database that fails ----------------------------------------------------------------------------


class Interrupted(list[str | None]):
    """A column of outcomes during whose iteration `happens` is called."""

    def __init__(self, column, happens):
        super().__init__(column)
        self._happens = happens

    def __iter__(self):
        for place, value in enumerate(super().__iter__()):
            if place == 1:
                self._happens()
            yield value


def interrupted(outcomes, happens):
    found = to_columns(outcomes)
    return replace(found, labels=Interrupted(found.labels, happens))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_connection_that_breaks_among_the_rows_is_a_service_that_is_down(
    ledger, make_job, worker, postgresql_server
):
    # Given a claim, and a database that ends the connection while the rows are sent
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0])

    def record():
        with worker.ledger.transaction() as connection:
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            end_it = f"SELECT pg_terminate_backend({pid}, 5000)"
            outcomes = interrupted(sevens("a", "b"), lambda: postgresql_server.execute(end_it))
            record_results(connection, [Classified(claim, outcomes)])

    # When the outcomes are recorded, Then the error is Unavailable
    with pytest.raises(Unavailable):
        record()

    # And nothing is stored, and a second attempt records it once
    assert counters_of(ledger, job) == (JobState.RUNNING, 2, 0, 0)
    worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.DONE, 2, 2, 0)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_database_that_gives_up_among_the_rows_is_a_service_that_is_down(make_job, worker):
    # Given a claim, and a database with a short statement timeout
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0])

    def record():
        with worker.ledger.transaction() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = '20ms'")
            record_results(
                connection, [Classified(claim, interrupted(sevens("a", "b"), lambda: time.sleep(0.1)))]
            )

    # When the rows are sent slowly, Then the error is Unavailable
    with pytest.raises(Unavailable):
        record()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_disk_that_is_full_is_a_service_that_is_down(ledger, make_job, worker):
    # Given a claim on many images, and a database that may not grow
    job = make_job([5_000])
    claim = worker.must_claim(job.chunks[0])

    def record():
        with worker.ledger.transaction() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            record_results(
                connection, [Classified(claim, to_columns(sevens(*["a rather long name.png"] * 5_000)))]
            )

    # When the outcomes are recorded, Then the error is Unavailable
    with pytest.raises(Unavailable, match="full"):
        record()

    # And nothing is stored
    assert counters_of(ledger, job) == (JobState.RUNNING, 5_000, 0, 0)


def test_a_name_that_no_database_takes_is_stored_as_one_that_it_does(ledger, make_job, worker):
    # Given names and a detail with characters that PostgreSQL cannot store
    job = make_job([3])
    outcomes = [*sevens("nul\0.png", "\udcff.png"), Outcome("c.png", None, None, "corrupt", "bad \0 byte")]

    # When they are recorded, Then the chunk is done, with the characters replaced or escaped
    worker.work(job.chunks[0], outcomes)
    found = predictions_of(ledger, job)
    assert [prediction.name for prediction in found] == ["nul\ufffd.png", "\\xff.png", "c.png"]
    assert found[2].detail == "bad \ufffd byte"
