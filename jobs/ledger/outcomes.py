"""Results come in: the outcomes of chunks, their end and their jobs' counters, in one transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from itertools import count as count_up
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ledger.claims import Claim, drop_waiting_chunks, finish_chunks
from jobs.ledger.counters import OK, CounterName, bucket_of, count
from jobs.ledger.parts import cut_chunk
from jobs.ledger.shadows import Shadowed, record_shadowed
from jobs.outcomes import Outcome, Outcomes
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
    """What came of one chunk: an outcome for each of its images, in order, or for the first of them, and what
    a challenger said of these where one has seen them.
    """

    claim: Claim
    outcomes: Sequence[Outcome]  # by columns (`Outcomes`) where there are many
    shadowed: Shadowed | None = None
    #: Where it was left before its end: the id of the chunk that the images without an outcome become.
    rest_id: str | None = None


class _Recorded(NamedTuple):
    """The same, as it is written."""

    claim: Claim
    outcomes: Outcomes
    shadowed: Shadowed | None
    rest_id: str | None


def record_outcomes(
    connection: Connection, classified: Sequence[Classified], spent: Spent | None = None
) -> set[str]:
    """Ends claims under one token with their outcomes, and notes what they took where that was measured.
    Gives back the ids of the chunks that were recorded: of one that is somebody else's by now nothing is.

    Raises LeaseLost where all are; the transaction must then roll back. Raises ValueError where outcomes are
    missing or too many.
    """
    for claim, outcomes, _, rest_id in classified:
        # Of what is left before its end, at least one has come out, and at least one has not.
        expected = range(1, claim.images) if rest_id else (claim.images,)
        if len(outcomes) not in expected:
            raise ValueError(f"{len(outcomes)} outcomes for a chunk of {claim.images} images")
    began = time.perf_counter()
    # The fence comes first: it locks the chunks' rows, so that nobody can claim them while rows are written.
    ours = finish_chunks(connection, [one.claim for one in classified])
    recorded = [_kept(one, ours[one.claim.chunk_id]) for one in classified if one.claim.chunk_id in ours]
    # In key order: two transactions that insert the same keys in different orders deadlock.
    recorded.sort(key=lambda one: (one.claim.job_id, one.claim.first_index))
    _insert(connection, recorded)
    for claim, outcomes, shadowed, rest_id in recorded:
        if shadowed is not None:
            record_shadowed(connection, claim, shadowed)
        if rest_id is not None:
            cut_chunk(connection, claim, done=len(outcomes), rest_id=rest_id)
    codes: Counter[str | None] = Counter()
    for one in recorded:
        codes.update(one.outcomes.codes)
    # The hot rows last: every worker of the job wants its row, and it stays locked until the commit.
    _count_in_jobs(connection, recorded, seconds=began - spent.began if spent else 0.0)
    count(connection, {(CounterName.IMAGES, code or OK): number for code, number in codes.items()})
    if spent is not None:
        _count_seconds(connection, spent, chunks=len(recorded), recording_since=began)
    return set(ours)


def _kept(classified: Classified, images: int) -> _Recorded:
    """What is to be recorded of a chunk that has so many images by now: fewer than its claim knows of where
    the others were given away, and no answer came to that COMMIT (`jobs.ledger.parts.give_away`).
    """
    claim, outcomes, shadowed, rest_id = classified
    if images == claim.images:
        return _Recorded(claim, Outcomes.of(outcomes), shadowed, rest_id)
    kept = Outcomes.of(outcomes[:images])
    rest_id = rest_id if len(kept) < images else None
    return _Recorded(replace(claim, images=images), kept, shadowed, rest_id)


def _count_in_jobs(connection: Connection, recorded: Sequence[_Recorded], *, seconds: float) -> None:
    """Moves the counters of the chunks' jobs, and with the last chunk of one or one error too many its state.
    `seconds`: for how long the chunks have been worked on.
    """
    moves: dict[str, dict[str, Any]] = {}  # in the order of the jobs' ids, as everybody locks their rows
    for claim, outcomes, _, rest_id in recorded:
        failed = outcomes.failed
        begun = {"of_job": claim.job_id, "began": -seconds}
        move = moves.setdefault(claim.job_id, begun | dict.fromkeys(_MOVED, 0))
        move["succeeded_now"] += len(outcomes) - failed
        move["failed_now"] += failed
        move["chunks_done_now"] += 1
        move["chunks_more"] += rest_id is not None
    if len(moves) == 1:
        ended = connection.execute(_COUNT_AND_TELL, *moves.values()).all()
    else:
        connection.execute(_COUNT, list(moves.values()))
        ended = connection.execute(sa.select(*_END).where(jobs.c.id.in_(moves))).all()
    for job in ended:
        if job.state == JobState.DONE:  # by these chunks: no other comes after the last
            count(connection, {(CounterName.JOBS, JobState.DONE): 1})
        if job.state == JobState.FAILED and job.error is None:
            count(connection, {(CounterName.JOBS, JobState.FAILED): 1})
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(error=_too_many(job)))
            drop_waiting_chunks(connection, job.id)


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


#: By how much the counters of a job move.
_MOVED: Final = ("succeeded_now", "failed_now", "chunks_done_now", "chunks_more")


def _counting() -> sa.Update:
    """So many chunks of a job are done: its counters move, and maybe its state."""
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
    chunks_done = jobs.c.chunks_done + sa.bindparam("chunks_done_now", type_=sa.Integer())
    chunks = jobs.c.chunks + sa.bindparam("chunks_more", type_=sa.Integer())
    complete = sa.and_(jobs.c.state == JobState.RUNNING, chunks_done == chunks)
    stopped = sa.and_(under_way, too_many)
    return (
        jobs.update()
        .where(jobs.c.id == sa.bindparam("of_job"))
        .values(
            succeeded=new_succeeded,
            failed=new_failed,
            chunks=chunks,
            chunks_done=chunks_done,
            state=sa.case((stopped, JobState.FAILED), (complete, JobState.DONE), else_=jobs.c.state),
            finished_at=sa.case((sa.or_(stopped, complete), db_now()), else_=jobs.c.finished_at),
            # Who gathers chunks leaves their jobs' rows alone: that these have begun is only written now.
            started_at=sa.func.coalesce(jobs.c.started_at, db_now("began")),
        )
    )


#: What tells whether a job has ended, and why.
_END: Final = (
    *(jobs.c.id, jobs.c.state, jobs.c.error, jobs.c.succeeded, jobs.c.failed),
    *(jobs.c.error_limit, jobs.c.error_rate_limit),
)

_COUNT: Final = _counting()
_COUNT_AND_TELL: Final = _COUNT.returning(*_END)


def _insert(connection: Connection, recorded: Sequence[_Recorded]) -> None:
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
