"""Results: the outcomes of chunks, their end and their jobs' counters, recorded in one transaction.

This is the last stop of an image on its way from `producer.submit`: its row in `predictions`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from itertools import count as count_up
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ledger.claims import Claim, finish_claims
from jobs.ledger.control import drop_waiting_work
from jobs.ledger.counters import OK, CounterName, bucket_of, count
from jobs.outcomes import Outcomes
from jobs.schema import UNFINISHED, JobState, db_now, jobs
from jobs.text import all_storable, storable

#: Confidences are stored with this many digits after the point; a float32 holds no more.
CONFIDENCE_DIGITS: Final = 7


class Spent(NamedTuple):
    """Where the time of a chunk went, by `time.perf_counter`."""

    began: float  # when its worker took it up
    stages: Mapping[str, float]  # seconds by stage, in the order of their doing; recording is still to come


#: The stage that is measured here: writing the outcomes, without the COMMIT.
RECORD_STAGE: Final = "record"

#: What is written of an outcome, and what PostgreSQL calls the types: a binary COPY converts nothing.
_COLUMNS: Final = {
    "job_id": "varchar",
    '"index"': "int8",
    "name": "text",
    "label": "text",
    "confidence": "float4",
    "error": "varchar",
    "detail": "text",
}

#: The columns that are left out where no image has an error, as in nearly all chunks.
_OF_ERRORS: Final = ("error", "detail")


class Classified(NamedTuple):
    """A claim with one outcome for each of its images, in order."""

    claim: Claim
    outcomes: Outcomes


def record_results(
    connection: Connection, classified: Sequence[Classified], spent: Spent | None = None
) -> list[Classified]:
    """End claims under one token with their outcomes; return those that were recorded.

    Nothing is recorded for a chunk that another worker has claimed meanwhile. `spent` is added to the
    counters. Raises LeaseLost if that is so for all: the caller must roll back. Raises ValueError if the
    number of outcomes is not that of the images.
    """
    for claim, outcomes in classified:
        if len(outcomes) != claim.images:
            raise ValueError(f"{len(outcomes)} outcomes for a chunk of {claim.images} images")
    began = time.perf_counter()
    # The fence comes first: it locks the chunks' rows, so that nobody can claim them while rows are written.
    ours = finish_claims(connection, [each.claim for each in classified])
    # In key order: two transactions that insert the same keys in different orders deadlock.
    recorded = sorted(
        (each for each in classified if each.claim.chunk_id in ours),
        key=lambda each: (each.claim.job_id, each.claim.first_index),
    )
    _insert(connection, recorded)
    codes: Counter[str | None] = Counter()
    for each in recorded:
        codes.update(each.outcomes.codes)
    # The hot rows last: every worker of the job needs its row, and it stays locked until the commit.
    _count_in_jobs(connection, recorded, seconds=began - spent.began if spent else 0.0)
    count(connection, {(CounterName.IMAGES, code or OK): number for code, number in codes.items()})
    if spent is not None:
        _count_seconds(connection, spent, chunks=len(recorded), recording_since=began)
    return recorded


def _count_in_jobs(connection: Connection, recorded: Sequence[Classified], *, seconds: float) -> None:
    """Move the counters of the chunks' jobs, and their state with the last image or one error too many.

    `seconds`: how long the chunks have been worked on.
    """
    moves: dict[
        str, dict[str, Any]
    ] = {}  # in the order of the jobs' ids, in which everybody locks their rows
    for claim, outcomes in recorded:
        begun = {"of_job": claim.job_id, "began": -seconds, "succeeded_now": 0, "failed_now": 0}
        move = moves.setdefault(claim.job_id, begun)
        move["succeeded_now"] += len(outcomes) - outcomes.failed
        move["failed_now"] += outcomes.failed
    if len(moves) == 1:
        ended = connection.execute(_COUNT_AND_RETURN, *moves.values()).all()
    else:
        connection.execute(_COUNT, list(moves.values()))
        ended = connection.execute(sa.select(*_END).where(jobs.c.id.in_(moves))).all()
    for job in ended:
        if job.state == JobState.DONE:  # by these chunks: no image comes after the last
            count(connection, {(CounterName.JOBS, JobState.DONE): 1})
        if job.state == JobState.FAILED and job.error is None:
            count(connection, {(CounterName.JOBS, JobState.FAILED): 1})
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(error=_too_many(job)))
            drop_waiting_work(connection, job.id)


def _count_seconds(connection: Connection, spent: Spent, *, chunks: int, recording_since: float) -> None:
    """The stages' seconds are those of the process; each chunk took as long as all that were with it."""
    now = time.perf_counter()
    stages = {**spent.stages, RECORD_STAGE: now - recording_since}
    count(connection, {(CounterName.STAGE_SECONDS, stage): seconds for stage, seconds in stages.items()})
    seconds = now - spent.began
    count(
        connection,
        {
            (CounterName.CHUNK_BUCKET, bucket_of(seconds)): chunks,
            (CounterName.CHUNK_SECONDS, ""): seconds * chunks,
        },
    )


def _too_many(job: sa.Row[Any]) -> str:
    if job.error_limit is not None and job.failed > job.error_limit:
        limit = f"{job.error_limit:,}"
    else:
        limit = f"{100 * job.error_rate_limit:.6g} %"
    done = job.succeeded + job.failed
    return f"{job.failed:,} of {done:,} images got an error, more than its limit of {limit}."


def _counting() -> sa.Update:
    """Return the statement that moves a job's counters, and maybe its state."""
    new_failed = jobs.c.failed + sa.bindparam("failed_now", type_=sa.BigInteger())
    new_succeeded = jobs.c.succeeded + sa.bindparam("succeeded_now", type_=sa.BigInteger())
    new_done = new_succeeded + new_failed
    under_way = sa.or_(*(jobs.c.state == state for state in UNFINISHED))  # IN is no part of an executemany
    # A limit that is not set is NULL, and no comparison with NULL is true. The share is a quotient, because
    # 29 / 100 is the same float as 0.29, and 0.29 * 100 is less than 29.
    share = sa.cast(new_failed, sa.Double()) / sa.cast(new_done, sa.Double())
    too_many = sa.or_(
        new_failed > jobs.c.error_limit,
        sa.and_(new_done >= jobs.c.error_rate_sample, share > jobs.c.error_rate_limit),
    )
    complete = sa.and_(jobs.c.state == JobState.RUNNING, new_done == jobs.c.total)
    stopped = sa.and_(under_way, too_many)
    return (
        jobs.update()
        .where(jobs.c.id == sa.bindparam("of_job"))
        .values(
            succeeded=new_succeeded,
            failed=new_failed,
            state=sa.case((stopped, JobState.FAILED), (complete, JobState.DONE), else_=jobs.c.state),
            finished_at=sa.case((sa.or_(stopped, complete), db_now()), else_=jobs.c.finished_at),
            # A claim leaves the job's row alone, so that it waits for no other worker.
            started_at=sa.func.coalesce(jobs.c.started_at, db_now("began")),
        )
    )


#: The columns that say whether a job has ended, and why.
_END: Final = (
    *(jobs.c.id, jobs.c.state, jobs.c.error, jobs.c.succeeded, jobs.c.failed),
    *(jobs.c.error_limit, jobs.c.error_rate_limit),
)

_COUNT: Final = _counting()
_COUNT_AND_RETURN: Final = _COUNT.returning(*_END)


def _insert(connection: Connection, recorded: Sequence[Classified]) -> None:
    with_errors = any(one.outcomes.failed for one in recorded)
    columns = [name for name in _COLUMNS if with_errors or name not in _OF_ERRORS]
    rows = chain.from_iterable(_rows(one.claim, one.outcomes, len(columns)) for one in recorded)
    into = f"predictions ({', '.join(columns)})"
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {into} FROM STDIN WITH (FORMAT BINARY)", columns, rows)
    else:
        values = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({values})", list(rows))  # noqa: S608 -- constants


def _rows(claim: Claim, outcomes: Outcomes, columns: int) -> Iterator[tuple[object, ...]]:
    """The first so many columns of the rows."""
    details = outcomes.details
    all_columns: tuple[Iterable[object], ...] = (
        repeat(claim.job_id),
        count_up(claim.first_index),
        # A text that PostgreSQL cannot take would keep its chunk from ever being recorded.
        all_storable(outcomes.names),
        outcomes.labels,
        outcomes.confidences,
        repeat(None) if outcomes.errors is None else outcomes.errors,
        repeat(None) if details is None else [detail and storable(detail) for detail in details],
    )
    return zip(*all_columns[:columns], strict=False)  # some of them have no end


def _copy(
    connection: Connection, statement: str, columns: Sequence[str], rows: Iterable[tuple[object, ...]]
) -> None:
    import psycopg  # only where the ledger is on PostgreSQL

    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 -- tells the type checker: an open connection has its driver's
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([_COLUMNS[name] for name in columns])
            for row in rows:
                copy.write_row(row)
    except psycopg.OperationalError as error:
        # SQLAlchemy knows nothing of COPY and lets the driver's own errors through.
        raise Unavailable(f"The ledger cannot be reached: {error}") from error
