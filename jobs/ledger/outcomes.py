"""Results come in: the outcomes of one chunk, its end and its job's counters, in one transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ledger.claims import Claim, drop_waiting_chunks, finish_chunk
from jobs.ledger.counters import OK, CounterName, bucket_of, count
from jobs.ledger.shadows import Shadowed, record_shadowed
from jobs.schema import UNFINISHED, JobState, db_now, jobs
from jobs.text import storable

#: Confidences are stored with this many digits after the point; a float32 holds no more.
CONFIDENCE_DIGITS: Final = 7


class Outcome(NamedTuple):
    """What became of one image: a label with its confidence, or an error code with its detail."""

    name: str
    label: str | None
    confidence: float | None
    error: str | None = None
    detail: str | None = None


class Spent(NamedTuple):
    """Where the time of a chunk went, by `time.perf_counter`."""

    began: float  # when its worker took it up
    stages: Mapping[str, float]  # seconds by stage, in the order of their doing; recording is still to come


#: The stage that is measured here: writing the outcomes, without the COMMIT.
RECORD_STAGE: Final = "record"

_COLUMNS = '(job_id, "index", name, label, confidence, error, detail)'
_COPY = f"COPY predictions {_COLUMNS} FROM STDIN"
_INSERT = f"INSERT INTO predictions {_COLUMNS} VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 -- constants


def record_outcomes(
    connection: Connection,
    claim: Claim,
    outcomes: Sequence[Outcome],
    shadowed: Shadowed | None = None,
    spent: Spent | None = None,
) -> None:
    """Ends the claim with one outcome an image, in the chunk's order, with what a challenger said of them
    where one has seen them, and with what they took where that was measured.

    Raises LeaseLost where the claim is somebody else's by now; the transaction must then roll back, which
    takes everything written here with it. Raises ValueError where outcomes are missing or too many.
    """
    if len(outcomes) != claim.images:
        raise ValueError(f"{len(outcomes)} outcomes for a chunk of {claim.images} images")
    began = time.perf_counter()
    # The fence comes first: it locks the chunk's row, so that nobody can claim it while rows are written.
    finish_chunk(connection, claim)
    _insert(connection, claim, outcomes)
    if shadowed is not None:
        record_shadowed(connection, claim, shadowed)
    codes = Counter(outcome.error or OK for outcome in outcomes)
    succeeded = codes[OK]
    # The hot row last: every worker of the job wants it, and it stays locked until the commit.
    job = connection.execute(
        _counted(claim.job_id, succeeded=succeeded, failed=len(outcomes) - succeeded).returning(
            jobs.c.state,
            jobs.c.error,
            jobs.c.succeeded,
            jobs.c.failed,
            jobs.c.error_limit,
            jobs.c.error_rate_limit,
        )
    ).one()
    count(connection, {(CounterName.IMAGES, code): number for code, number in codes.items() if number})
    if spent is not None:
        _count_seconds(connection, spent, recording_since=began)
    if job.state == JobState.DONE:  # by this chunk: no other comes after the last
        count(connection, {(CounterName.JOBS, JobState.DONE): 1})
    if job.state == JobState.FAILED and job.error is None:
        count(connection, {(CounterName.JOBS, JobState.FAILED): 1})
        connection.execute(jobs.update().where(jobs.c.id == claim.job_id).values(error=_too_many(job)))
        drop_waiting_chunks(connection, claim.job_id)


def _count_seconds(connection: Connection, spent: Spent, *, recording_since: float) -> None:
    now = time.perf_counter()
    stages = {**spent.stages, RECORD_STAGE: now - recording_since}
    count(connection, {(CounterName.STAGE_SECONDS, stage): seconds for stage, seconds in stages.items()})
    seconds = now - spent.began
    count(
        connection,
        {(CounterName.CHUNK_BUCKET, bucket_of(seconds)): 1, (CounterName.CHUNK_SECONDS, ""): seconds},
    )


def _too_many(job: sa.Row[Any]) -> str:
    if job.error_limit is not None and job.failed > job.error_limit:
        limit = f"{job.error_limit:,}"
    else:
        limit = f"{100 * job.error_rate_limit:.6g} %"
    done = job.succeeded + job.failed
    return f"{job.failed:,} of {done:,} images got an error, more than its limit of {limit}."


def _counted(job_id: str, *, succeeded: int, failed: int) -> sa.Update:
    """One more chunk is done: the counters move, and with the last chunk or one error too many the state."""
    new_failed = jobs.c.failed + failed
    new_done = jobs.c.succeeded + succeeded + new_failed
    under_way = jobs.c.state.in_(UNFINISHED)
    # A limit that is not set is NULL, and no comparison with NULL is true. The share is a quotient, because
    # 29 / 100 is the same float as 0.29, and 0.29 * 100 is less than 29.
    share = sa.cast(new_failed, sa.Double()) / sa.cast(new_done, sa.Double())
    too_many = sa.or_(
        new_failed > jobs.c.error_limit,
        sa.and_(new_done >= jobs.c.error_rate_sample, share > jobs.c.error_rate_limit),
    )
    chunks_done = jobs.c.chunks_done + 1
    complete = sa.and_(jobs.c.state == JobState.RUNNING, chunks_done == jobs.c.chunks)
    stopped = sa.and_(under_way, too_many)
    return (
        jobs.update()
        .where(jobs.c.id == job_id)
        .values(
            succeeded=jobs.c.succeeded + succeeded,
            failed=new_failed,
            chunks_done=chunks_done,
            state=sa.case((stopped, JobState.FAILED), (complete, JobState.DONE), else_=jobs.c.state),
            finished_at=sa.case((sa.or_(stopped, complete), db_now()), else_=jobs.c.finished_at),
        )
    )


def _insert(connection: Connection, claim: Claim, outcomes: Sequence[Outcome]) -> None:
    """In key order: two transactions that insert the same keys in different orders deadlock."""
    job_id, first = claim.job_id, claim.first_index
    # A name that PostgreSQL cannot take would keep its chunk from ever being recorded.
    rows = (
        (job_id, first + offset, storable(name), label, confidence, error, detail and storable(detail))
        for offset, (name, label, confidence, error, detail) in enumerate(outcomes)
    )
    if connection.dialect.name == "postgresql":
        _copy(connection, rows)
    else:
        connection.exec_driver_sql(_INSERT, list(rows))


def _copy(connection: Connection, rows: Iterable[tuple[object, ...]]) -> None:
    import psycopg  # only where the ledger is on PostgreSQL

    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 -- tells the type checker: an open connection has its driver's
    try:
        with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.OperationalError as error:
        # SQLAlchemy knows nothing of COPY and lets the driver's own errors through.
        raise Unavailable(f"The ledger cannot be reached: {error}") from error
