"""Results: one transaction records the outcomes of chunks, ends their claims, and updates the jobs' counters.

Here an image that `producer.submit` accepted gets its row in `predictions`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from itertools import count as count_up
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import LeaseLost
from jobs.ledger.counters import OK, AttemptEnd, CounterName, bucket_of, count
from jobs.ledger.database import as_unavailable
from jobs.ledger.jobs.claims import Claim, claimed_as
from jobs.ledger.jobs.control import drop_waiting_work
from jobs.ledger.jobs.outcomes import Outcomes
from jobs.ledger.webhook_outbox import report_ended_jobs
from jobs.schema import CHUNK_IS_CLAIMED, UNFINISHED, ChunkState, JobState, chunks, db_now, jobs, predictions
from jobs.text import all_storable, storable

#: Confidences are stored with this many digits after the point; a float32 holds no more.
CONFIDENCE_DIGITS: Final = 7

#: The stage that is measured here: writing the outcomes, without the COMMIT.
RECORD_STAGE: Final = "record"


class Spent(NamedTuple):
    """How long a chunk took, by `time.perf_counter`."""

    began: float  # when its worker began
    stages: Mapping[str, float]  # seconds by stage, in order; recording is added here


@dataclass(frozen=True, slots=True)
class Classified:
    """A claim with one outcome for each of its images, in order."""

    claim: Claim
    outcomes: Outcomes


def split_outcomes(claims: Sequence[Claim], outcomes: Outcomes) -> list[Classified]:
    """Give each of the claims the outcomes of its images, with the alternatives that its job asked for."""
    ends = accumulate(claim.images for claim in claims)
    return [
        Classified(claim, outcomes[end - claim.images : end].limited_to(claim.top_k))
        for claim, end in zip(claims, ends, strict=True)
    ]


def record_results(
    connection: Connection, classified: Sequence[Classified], spent: Spent | None = None
) -> list[Classified]:
    """End claims under one token with their outcomes; return those that were recorded.

    It is safe to repeat after a COMMIT whose answer was lost. Nothing is recorded for a chunk that another
    worker has claimed meanwhile. `spent` is added to the counters. Raises LeaseLost if all chunks are lost:
    the caller must roll back. Raises ValueError if the number of outcomes is not that of the images.
    """
    for each in classified:
        if len(each.outcomes) != each.claim.images:
            raise ValueError(f"{len(each.outcomes)} outcomes for a chunk of {each.claim.images} images")
    began = time.perf_counter()
    # The fence comes first: it locks the chunks' rows, so that nobody can claim them while rows are written.
    ours = finish_claims(connection, [each.claim for each in classified])
    if not ours:  # recorded before
        return list(classified)
    # In key order: two transactions that insert the same keys in different orders deadlock.
    recorded = sorted(
        (each for each in classified if each.claim.chunk_id in ours),
        key=lambda each: (each.claim.job_id, each.claim.first_index),
    )
    _insert(connection, recorded)
    # The hot rows last: every worker of the job needs its row, and it stays locked until the commit.
    _count_in_jobs(connection, recorded, seconds=began - spent.began if spent else 0.0)
    codes = sum((each.outcomes.codes for each in recorded), Counter[str | None]())
    count(connection, {(CounterName.IMAGES, code or OK): number for code, number in codes.items()})
    if spent is not None:
        _count_seconds(connection, spent, number=len(recorded), recording_since=began)
    return recorded


# ---- the fence ------------------------------------------------------------------------------------


def finish_claims(connection: Connection, claims: Sequence[Claim]) -> set[str]:
    """Mark the chunks of claims under one token done: the fence. Return the ids of those still ours.

    Nothing may be recorded for any other. Return none if they are done already: an earlier COMMIT went
    through, and only its answer was lost. Raises LeaseLost if none is ours: the caller must roll back.
    """
    finish = (
        chunks.update()
        .where(CHUNK_IS_CLAIMED, claimed_as(claims))
        .values(state=ChunkState.DONE, lease_until=None, finished_at=db_now())
        .returning(chunks.c.id)
    )
    finished = set(connection.scalars(finish))
    if finished:
        count(connection, {(CounterName.ATTEMPTS, AttemptEnd.DONE): len(finished)})
    elif not were_finished(connection, claims):
        raise LeaseLost
    return finished


def were_finished(connection: Connection, claims: Sequence[Claim]) -> bool:
    """Return whether any of the chunks was finished under these claims' token, and so all that were ours."""
    finished = sa.select(chunks.c.id).where(claimed_as(claims), chunks.c.state == ChunkState.DONE)
    return connection.scalar(finished.limit(1)) is not None


# ---- the predictions ------------------------------------------------------------------------------


def _insert(connection: Connection, recorded: Sequence[Classified]) -> None:
    # Nearly all chunks have no error and no alternatives, and NULLs cost SQLite a microsecond per image.
    columns = [
        column
        for column in predictions.c
        if not column.nullable or any(each.outcomes.has(column.name) for each in recorded)
    ]
    on_postgresql = connection.dialect.name == "postgresql"
    rows = chain.from_iterable(_rows(each, columns, as_text=not on_postgresql) for each in recorded)
    names = ", ".join(f'"{column.name}"' for column in columns)
    into = f"predictions ({names})"
    if on_postgresql:
        _copy(connection, f"COPY {into} FROM STDIN WITH (FORMAT BINARY)", columns, rows)
    else:
        values = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({values})", list(rows))  # noqa: S608 -- constants


def _rows(
    classified: Classified, columns: Sequence[sa.Column[Any]], *, as_text: bool
) -> Iterator[tuple[object, ...]]:
    """Yield a row for each image; with `as_text`, JSON is text, as PostgreSQL's driver makes it itself."""
    claim, outcomes = classified.claim, classified.outcomes

    def values_of(column: sa.Column[Any]) -> Iterable[object]:
        if column.name == "job_id":
            return repeat(claim.job_id)
        if column.name == "index":
            return count_up(claim.first_index)
        values: Sequence[Any] | None = getattr(outcomes, column.name)
        if values is None:
            return repeat(None)
        # A text that PostgreSQL cannot take would keep its chunk from ever being recorded.
        if column.name == "name":
            return all_storable(values)
        if column.name == "detail":
            return [each and storable(each) for each in values]
        if as_text and isinstance(column.type, sa.JSON):
            return [each and json.dumps(each) for each in values]
        return values

    return zip(*map(values_of, columns), strict=False)  # `repeat` has no end


def _copy(
    connection: Connection,
    statement: str,
    columns: Sequence[sa.Column[Any]],
    rows: Iterable[tuple[object, ...]],
) -> None:
    import psycopg  # only if the ledger is on PostgreSQL

    # Without lengths, as in "varchar(32)"
    types = [each.type.compile(connection.dialect).lower().partition("(")[0] for each in columns]
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 -- tells the type checker: an open connection has its driver's
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)  # a binary COPY converts nothing
            for row in rows:
                copy.write_row(row)
    except psycopg.OperationalError as error:
        # SQLAlchemy knows nothing of COPY and lets the driver's own errors through.
        raise as_unavailable(error) from error


# ---- the counters ---------------------------------------------------------------------------------


def _counting() -> sa.Update:
    """Return the statement that updates a job's counters, and its state if it ends."""
    new_failed = jobs.c.failed + sa.bindparam("failed_now", type_=sa.BigInteger())
    new_succeeded = jobs.c.succeeded + sa.bindparam("succeeded_now", type_=sa.BigInteger())
    new_done = new_succeeded + new_failed
    is_unfinished = sa.or_(*(jobs.c.state == state for state in UNFINISHED))  # executemany cannot do IN
    # A limit that is not set is NULL, and no comparison with NULL is true. The share is a quotient, because
    # 29 / 100 is the same float as 0.29, and 0.29 * 100 is less than 29.
    share = sa.cast(new_failed, sa.Double()) / sa.cast(new_done, sa.Double())
    too_many = sa.or_(
        new_failed > jobs.c.error_limit,
        sa.and_(new_done >= jobs.c.error_rate_sample, share > jobs.c.error_rate_limit),
    )
    stopped = sa.and_(is_unfinished, too_many)
    complete = sa.and_(jobs.c.state == JobState.RUNNING, new_done == jobs.c.total)
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
_END: Final = jobs.c["id", "state", "error", "succeeded", "failed", "error_limit", "error_rate_limit"]

_COUNT: Final = _counting()
_COUNT_AND_RETURN: Final = _COUNT.returning(*_END)


def _count_in_jobs(connection: Connection, recorded: Sequence[Classified], *, seconds: float) -> None:
    """Update the counters of the chunks' jobs, and end a job with its last image or with one error too many.

    The work on the chunks began `seconds` ago.
    """
    # By job, in the order of the ids: all transactions lock the jobs' rows in this order.
    updates: dict[str, dict[str, Any]] = {}
    for each in recorded:
        claim, outcomes = each.claim, each.outcomes
        begun = {"of_job": claim.job_id, "began": -seconds, "succeeded_now": 0, "failed_now": 0}
        update = updates.setdefault(claim.job_id, begun)
        update["succeeded_now"] += len(outcomes) - outcomes.failed
        update["failed_now"] += outcomes.failed
    if len(updates) == 1:
        updated = connection.execute(_COUNT_AND_RETURN, *updates.values()).all()
    else:
        connection.execute(_COUNT, list(updates.values()))
        updated = connection.execute(sa.select(*_END).where(jobs.c.id.in_(updates))).all()
    ended = []
    for job in updated:
        if job.state == JobState.DONE:  # because of these chunks: they held its last images
            ended.append(job.id)
            count(connection, {(CounterName.JOBS, JobState.DONE): 1})
        if job.state == JobState.FAILED and job.error is None:
            ended.append(job.id)
            count(connection, {(CounterName.JOBS, JobState.FAILED): 1})
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(error=_too_many_errors(job)))
            drop_waiting_work(connection, job.id)
    report_ended_jobs(connection, ended)


def _too_many_errors(job: sa.Row[Any]) -> str:
    if job.error_limit is not None and job.failed > job.error_limit:
        limit = f"{job.error_limit:,}"
    else:
        limit = f"{100 * job.error_rate_limit:.6g} %"
    done = job.succeeded + job.failed
    return f"{job.failed:,} of {done:,} images got an error, more than its limit of {limit}."


def _count_seconds(connection: Connection, spent: Spent, *, number: int, recording_since: float) -> None:
    """Count the process's seconds by stage; each chunk took as long as all that were claimed with it."""
    now = time.perf_counter()
    seconds, stages = now - spent.began, {**spent.stages, RECORD_STAGE: now - recording_since}
    counts = {(CounterName.STAGE_SECONDS, stage): each for stage, each in stages.items()}
    counts[CounterName.CHUNK_BUCKET, bucket_of(seconds)] = number
    counts[CounterName.CHUNK_SECONDS, ""] = seconds * number
    count(connection, counts)
