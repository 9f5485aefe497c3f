"""Queries: jobs with their counters, and predictions page by page. Nothing here writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, ErrorCode, NotFound
from jobs.ledger.database import Ledger
from jobs.schema import FINISHED, ChunkState, JobState, chunks, db_now, jobs, predictions

#: Rows read from the ledger at a time when a whole job is streamed: a few megabytes.
PAGE_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job stands: its row, and how long its oldest chunk has waited."""

    id: str
    state: JobState
    total: int
    succeeded: int
    failed: int
    model: str
    key: str | None
    error: str | None
    paused: bool
    retry_of: str | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    purged_at: datetime | None
    read_at: datetime
    oldest_waiting_at: datetime | None

    @property
    def done(self) -> int:
        """Return how many images have a label or an error."""
        return self.succeeded + self.failed

    @property
    def finished(self) -> bool:
        """Return whether the job has ended."""
        return self.state in FINISHED

    @property
    def rate(self) -> float | None:
        """Return images per second since work began; None before."""
        if self.started_at is None or not self.done:
            return None
        seconds = ((self.finished_at or self.read_at) - self.started_at).total_seconds()
        return self.done / seconds if seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """Return the seconds to the end at the present rate; None if it is unknown."""
        # While a job is being submitted, nobody knows its total.
        if self.state != JobState.RUNNING or self.paused:
            return None
        rate = self.rate
        return (self.total - self.done) / rate if rate else None

    @property
    def oldest_waiting_seconds(self) -> float | None:
        """Return how long the oldest pending chunk has waited; None if none is pending."""
        if self.oldest_waiting_at is None:
            return None
        return max(0.0, (self.read_at - self.oldest_waiting_at).total_seconds())


def _status_query() -> sa.Select[tuple[object, ...]]:
    # The index on (job, state, first index) finds it in one step. Chunks are in the order of their images,
    # except the halves of a split chunk, which are as old as the split.
    oldest = (
        sa.select(chunks.c.created_at)
        .where(chunks.c.job_id == jobs.c.id, chunks.c.state == ChunkState.PENDING)
        .order_by(chunks.c.first_index)
        .limit(1)
        .scalar_subquery()
    )
    return sa.select(jobs, oldest.label("oldest_waiting_at"), db_now().label("read_at"))


def _to_status(row: Row[tuple[object, ...]]) -> JobStatus:
    state = JobState(row.state)
    return JobStatus(
        id=row.id,
        state=state,
        total=row.total,
        succeeded=row.succeeded,
        failed=row.failed,
        model=row.model_id,
        key=row.key,
        error=row.error,
        # A job that ended while it was paused is not paused any more.
        paused=row.paused_at is not None and state not in FINISHED,
        retry_of=row.retry_of,
        created_at=row.created_at,
        submitted_at=row.submitted_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        purged_at=row.purged_at,
        read_at=row.read_at,
        oldest_waiting_at=row.oldest_waiting_at,
    )


def job_status(connection: Connection, job_id: str) -> JobStatus:
    """Return where a job stands. Raises NotFound."""
    row = connection.execute(_status_query().where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}: `labelmill jobs` lists them.")
    return _to_status(row)


def chunk_exists(connection: Connection, chunk_id: str) -> bool:
    """Return whether there is a chunk with this id, in any state."""
    return connection.scalar(sa.select(chunks.c.id).where(chunks.c.id == chunk_id)) is not None


def latest_jobs(connection: Connection, *, limit: int, state: JobState | None = None) -> list[JobStatus]:
    """Return the latest jobs, newest first."""
    query = _status_query().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(jobs.c.state == state)
    return [_to_status(row) for row in connection.execute(query)]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The one recorded result of an image: a label with its confidence, or an error."""

    index: int
    name: str
    label: str | None
    confidence: float | None
    error: ErrorCode | None
    detail: str | None
    model: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which predictions of a job: all conditions that are given must hold."""

    label: str | None = None
    below: float | None = None  # confidence below this
    errors: bool = False  # only images that got no label
    name: str | None = None  # a glob: * any text, ? one character, [...] one of


def page_of_predictions(
    connection: Connection, job_id: str, wanted: Filter, *, after: int, limit: int
) -> list[Prediction]:
    """Return at most `limit` predictions with an index above `after` (-1: from the start), in index order.

    The cursor is the last index of the page before, so every page costs the same.
    """
    table = predictions.c
    query = (
        sa.select(
            table.index, table.name, table.label, table.confidence, table.error, table.detail, jobs.c.model_id
        )
        .join(jobs, jobs.c.id == table.job_id)
        .where(table.job_id == job_id, table.index > after)
        .order_by(table.index)
        .limit(limit)
    )
    if wanted.label is not None:
        query = query.where(table.label == wanted.label)
    if wanted.below is not None:
        # As float32, like the column: the float64 nearest to 0.7 is another number.
        query = query.where(table.confidence < sa.cast(wanted.below, sa.REAL))
    if wanted.errors:
        query = query.where(table.error.is_not(None))
    if wanted.name is not None:
        query = query.where(table.name.regexp_match(glob_to_regex(wanted.name)))
    return [
        Prediction(index, image, label, confidence, ErrorCode(error) if error else None, detail, model)
        for index, image, label, confidence, error, detail, model in connection.execute(query)
    ]


def stream_predictions(
    ledger: Ledger, job_id: str, wanted: Filter, *, after: int = -1, limit: int | None = None
) -> Iterator[Prediction]:
    """Yield predictions in index order, reading a page at a time: constant memory, no open transaction.

    Raises Conflict at the end if the job was purged meanwhile.
    """
    left = limit
    while left is None or left > 0:
        size = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
        with ledger.reading() as connection:
            page = page_of_predictions(connection, job_id, wanted, after=after, limit=size)
            last = len(page) < size or size == left
            if last:
                _check_all_there(connection, job_id)
        yield from page
        if last:
            return
        after = page[-1].index
        left = None if left is None else left - size


def _check_all_there(connection: Connection, job_id: str) -> None:
    """Raise Conflict if a purge has removed predictions of the job.

    Every job has a chunk, and a purge deletes the chunks before the first prediction.
    """
    if connection.scalar(sa.select(chunks.c.id).where(chunks.c.job_id == job_id).limit(1)) is None:
        raise Conflict(
            f"Job {job_id} was purged before or while its predictions were read: some are missing."
        )


def glob_to_regex(glob: str) -> str:
    r"""Return a shell glob as a regular expression for PostgreSQL and for Python, which answers for SQLite.

    `*` is any text, `/` included, `?` one character, `[...]` one of these, `[!...]` none of these. A bracket
    that is never closed stands for itself.
    """
    parts = []
    position = 0
    while position < len(glob):
        character = glob[position]
        position += 1
        if character == "*":
            parts.append(".*")
        elif character == "?":
            parts.append(".")
        elif character == "[" and (end := _end_of_set(glob, position)) > 0:
            parts.append(_set_to_regex(glob[position:end]))
            position = end + 1
        else:
            parts.append(re.escape(character))
    # (?s): a dot is any character, newlines included. \A, \Z: the whole name; $ would allow a last newline.
    return rf"(?s)\A{''.join(parts)}\Z"


def _end_of_set(glob: str, start: int) -> int:
    """Return where the set that begins at `start` closes, or -1. A ] that comes first belongs to it."""
    first = start + (glob[start : start + 1] in ("!", "^"))
    return glob.find("]", first + 1)


def _set_to_regex(inside: str) -> str:
    negated = inside[0] in "!^"
    members = re.findall(r"(.)-(.)|(.)", inside[1:] if negated else inside, re.DOTALL)
    items = [
        re.escape(single) if single else f"{re.escape(low)}-{re.escape(high)}"
        for low, high, single in members
        if single or low <= high
    ]
    if not items:  # ranges that run backwards are empty
        return "." if negated else r"(?!.)."
    return f"[{'^' if negated else ''}{''.join(items)}]"
