"""What many tests ask the ledger about a job or a training run, and what they do to it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import Claim
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.queries import JobStatus, job_status
from jobs.ledger.jobs.submission import NewChunk
from jobs.ledger.learning.models import find_champion
from jobs.ledger.learning.runs import Run, get_run
from jobs.schema import ChunkState, JobState, chunks, db_now, jobs, predictions, training_runs
from tests.conftest import Job


def status_of(ledger: Ledger, job: Job) -> JobStatus:
    with ledger.reading() as connection:
        return job_status(connection, job.id)


def rows_of(ledger: Ledger, job: Job) -> tuple[int, int, int]:
    """Return how many job, chunk and prediction rows the job has."""
    with ledger.reading() as connection:
        return tuple(  # type: ignore[return-value]
            connection.scalar(sa.select(sa.func.count()).where(column == job.id))
            for column in (jobs.c.id, chunks.c.job_id, predictions.c.job_id)
        )


def chunks_of(ledger: Ledger, job_id: str, *states: ChunkState) -> list[NewChunk]:
    """Return the job's chunks in order, or only those in these states."""
    columns = chunks.c["id", "first_index", "images", "payload", "payload_digest", "priority"]
    query = sa.select(columns).where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)
    if states:
        query = query.where(chunks.c.state.in_(states))
    with ledger.reading() as connection:
        return [NewChunk(*row) for row in connection.execute(query)]


def chunk_states_of(ledger: Ledger, job: Job) -> list[ChunkState]:
    """Return the states of the job's chunks, in order."""
    with ledger.reading() as connection:
        query = sa.select(chunks.c.state).where(chunks.c.job_id == job.id).order_by(chunks.c.first_index)
        return [ChunkState(state) for state in connection.scalars(query)]


def claim_of(ledger: Ledger, chunk_id: str) -> Claim:
    """Return the claim that a chunk's row describes."""
    query = sa.select(chunks, jobs.c.model_id).join(jobs).where(chunks.c.id == chunk_id)
    with ledger.reading() as connection:
        row = connection.execute(query).one()._asdict()
    values = {field.name: row[field.name] for field in fields(Claim) if field.name in row}
    return Claim(chunk_id=chunk_id, traceparent=None, **values)


def champion_of(ledger: Ledger) -> str | None:
    """Return the champion's id."""
    with ledger.reading() as connection:
        champion = find_champion(connection)
    return champion.id if champion else None


def count_rows(ledger: Ledger, table: sa.Table) -> int:
    with ledger.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def cancel(ledger: Ledger, job: Job) -> None:
    with ledger.transaction() as connection:
        assert end_job(connection, job.id, JobState.CANCELLED)


def age_heartbeat(ledger: Ledger, job: Job, seconds: float) -> None:
    """Let the last heartbeat of the job's producer be that old."""
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(touched_at=db_now(-seconds)))


def run_of(ledger: Ledger, run_id: str) -> Run:
    with ledger.reading() as connection:
        return get_run(connection, run_id)


def change_run(ledger: Ledger, run_id: str, **values: Any) -> None:
    """Change columns of a training run's row."""
    with ledger.transaction() as connection:
        connection.execute(training_runs.update().where(training_runs.c.id == run_id).values(**values))
