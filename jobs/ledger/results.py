"""Results: one transaction records the outcomes of chunks, ends their claims, and updates the jobs' counters.

Here an image that `producer.submit` accepted gets its row in `predictions`.
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
    """The time spent on a claim so far, by `time.perf_counter`."""

    began: float  # when its worker started
    stages: Mapping[str, float]  # seconds by stage, in order, without the recording


#: The stage that is measured here: writing the outcomes, without the COMMIT.
RECORD_STAGE: Final = "record"

#: The columns of an outcome, with PostgreSQL's types: a binary COPY converts nothing.
_COLUMNS: Final = {
    "job_id": "varchar",
    '"index"': "int8",
    "name": "text",
    "label": "text",
    "confidence": "float4",
    "error": "varchar",
    "detail": "text",
}

#: The columns that are left out if no image has an error, as in nearly all chunks.
_ERROR_COLUMNS: Final = ("error", "detail")


class Classified(NamedTuple):
    """A claim with one outcome for each of its images, in order."""

    claim: Claim
    outcomes: Outcomes


def record_results(
    connection: Connection, classified: Sequence[Classified], spent: Spent | None = None
) -> list[Classified]:
    """End claims under one token with their outcomes. Return those that were recorded.

    Nothing is recorded for a chunk that another worker has claimed meanwhile. `spent` is added to the
    counters. Raises LeaseLost if other workers have claimed all chunks: the caller must roll back. Raises
    ValueError if the number of outcomes differs from the number of images.
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
    """Update the counters of the chunks' jobs, and end a job with its last image or with one error too many.

    The work on the chunks began `seconds` ago.
    """
    # By job, in the order of the ids: all transactions lock the jobs' rows in this order.
    updates: dict[str, dict[str, Any]] = {}
    for claim, outcomes in recorded:
        begun = {"of_job": claim.job_id, "began": -seconds, "succeeded_now": 0, "failed_now": 0}
        update = updates.setdefault(claim.job_id, begun)
        update["succeeded_now"] += len(outcomes) - outcomes.failed
        update["failed_now"] += outcomes.failed
    if len(updates) == 1:
        ended = connection.execute(_COUNT_AND_RETURN, *updates.values()).all()
    else:
        connection.execute(_COUNT, list(updates.values()))
        ended = connection.execute(sa.select(*_ENDING).where(jobs.c.id.in_(updates))).all()
    for job in ended:
        if job.state == JobState.DONE:  # because of these chunks: they held its last images
            count(connection, {(CounterName.JOBS, JobState.DONE): 1})
        if job.state == JobState.FAILED and job.error is None:
            count(connection, {(CounterName.JOBS, JobState.FAILED): 1})
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(error=_too_many_errors(job)))
            drop_waiting_work(connection, job.id)


def _count_seconds(connection: Connection, spent: Spent, *, chunks: int, recording_since: float) -> None:
    """Count the seconds of each stage, and how long each chunk took: as long as all chunks of its claim."""
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


def _too_many_errors(job: sa.Row[Any]) -> str:
    if job.error_limit is not None and job.failed > job.error_limit:
        limit = f"{job.error_limit:,}"
    else:
        limit = f"{100 * job.error_rate_limit:.6g} %"
    done = job.succeeded + job.failed
    return f"{job.failed:,} of {done:,} images got an error, more than its limit of {limit}."


def _counting() -> sa.Update:
    """Return the statement that updates a job's counters, and its state if it ends."""
    new_failed = jobs.c.failed + sa.bindparam("failed_now", type_=sa.BigInteger())
    new_succeeded = jobs.c.succeeded + sa.bindparam("succeeded_now", type_=sa.BigInteger())
    new_done = new_succeeded + new_failed
    unfinished = sa.or_(*(jobs.c.state == state for state in UNFINISHED))  # executemany does not support IN
    # A limit that is not set is NULL, and no comparison with NULL is true. The share is a quotient, because
    # 29 / 100 is the same float as 0.29, and 0.29 * 100 is less than 29.
    share = sa.cast(new_failed, sa.Double()) / sa.cast(new_done, sa.Double())
    too_many = sa.or_(
        new_failed > jobs.c.error_limit,
        sa.and_(new_done >= jobs.c.error_rate_sample, share > jobs.c.error_rate_limit),
    )
    complete = sa.and_(jobs.c.state == JobState.RUNNING, new_done == jobs.c.total)
    stopped = sa.and_(unfinished, too_many)
    return (
        jobs.update()
        .where(jobs.c.id == sa.bindparam("of_job"))
        .values(
            succeeded=new_succeeded,
            failed=new_failed,
            state=sa.case((stopped, JobState.FAILED), (complete, JobState.DONE), else_=jobs.c.state),
            finished_at=sa.case((sa.or_(stopped, complete), db_now()), else_=jobs.c.finished_at),
            # Set here, because a claim does not touch the job's row and so waits for no other worker.
            started_at=sa.func.coalesce(jobs.c.started_at, db_now("began")),
        )
    )


#: The columns that say whether a job has ended, and why.
_ENDING: Final = (
    *(jobs.c.id, jobs.c.state, jobs.c.error, jobs.c.succeeded, jobs.c.failed),
    *(jobs.c.error_limit, jobs.c.error_rate_limit),
)

_COUNT: Final = _counting()
_COUNT_AND_RETURN: Final = _COUNT.returning(*_ENDING)


def _insert(connection: Connection, recorded: Sequence[Classified]) -> None:
    with_errors = any(one.outcomes.failed for one in recorded)
    columns = [name for name in _COLUMNS if with_errors or name not in _ERROR_COLUMNS]
    rows = chain.from_iterable(_rows(one.claim, one.outcomes, len(columns)) for one in recorded)
    into = f"predictions ({', '.join(columns)})"
    if connection.dialect.name == "postgresql":
        _copy(connection, f"COPY {into} FROM STDIN WITH (FORMAT BINARY)", columns, rows)
    else:
        values = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({values})", list(rows))  # noqa: S608 -- constants


def _rows(claim: Claim, outcomes: Outcomes, columns: int) -> Iterator[tuple[object, ...]]:
    """Yield the rows, with this many columns."""
    details = outcomes.details
    all_columns: tuple[Iterable[object], ...] = (
        repeat(claim.job_id),
        count_up(claim.first_index),
        # If PostgreSQL rejected a text, the chunk could never be recorded.
        all_storable(outcomes.names),
        outcomes.labels,
        outcomes.confidences,
        repeat(None) if outcomes.errors is None else outcomes.errors,
        repeat(None) if details is None else [detail and storable(detail) for detail in details],
    )
    return zip(*all_columns[:columns], strict=False)  # some are infinite


def _copy(
    connection: Connection, statement: str, columns: Sequence[str], rows: Iterable[tuple[object, ...]]
) -> None:
    import psycopg  # only the extra `postgres` brings it

    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 -- for the type checker
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([_COLUMNS[name] for name in columns])
            for row in rows:
                copy.write_row(row)
    except psycopg.OperationalError as error:
        # SQLAlchemy does not translate the errors of COPY.
        raise Unavailable(f"The ledger cannot be reached: {error}") from error
