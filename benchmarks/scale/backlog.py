"""What waits: how long each statement takes with many waiting chunks and finished jobs, and with few."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.report import milliseconds
from benchmarks.scale.ledgers import CHUNK_IMAGES, PreparedLedger, execute, make_job
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import COMBINED_CLAIM_IMAGES, Claim, claim_next
from jobs.ledger.jobs.control import drop_leftover_chunks, hold_leftover_chunks, pause_job
from jobs.ledger.jobs.queries import job_status, latest_jobs
from jobs.ledger.jobs.submission import SMALL_JOB_PRIORITY
from jobs.ledger.learning.runs import FailureDetector, active_runs, end_lost_runs
from jobs.ledger.maintenance import (
    count_due,
    end_stalled_sessions,
    fail_abandoned_jobs,
    release_expired_claims,
)
from jobs.ledger.metrics import backlog
from jobs.ledger.workers import forget_lost_workers
from jobs.queue import MAX_WAITING
from labelmill.console.terminal import say

#: Jobs that share what waits.
_LARGE_JOBS: Final = 10

#: Jobs of one image that are claimed before all that.
_SMALL_JOBS: Final = 600

#: Chunks of a paused job, and chunks that workers have claimed.
_PAUSED_CHUNKS: Final = 100
_CLAIMED: Final = 16

_LEASE_SECONDS: Final = 600.0

_JOB: Final = sa.text(
    "INSERT INTO jobs (id, state, model_id, total, created_at, touched_at, submitted_at)"
    " VALUES (:job, 'running', :model, :images, now(), now(), now())"
)
_CHUNKS: Final = sa.text(
    "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_digest, state, created_at)"
    " SELECT right(:job, 8) || lpad(n::text, 8, '0'), :job, n * :size, :size,"
    " 'payloads/' || n, repeat('0', 64), 'pending', now() - interval '1 hour' + n * interval '1 ms'"
    " FROM generate_series(0, :chunks - 1) AS n"
)
#: Jobs of one image, a second apart, of which one in a hundred was cancelled.
_FINISHED: Final = (
    sa.text(
        "INSERT INTO jobs (id, state, model_id, total, created_at, touched_at, submitted_at, finished_at)"
        " SELECT lpad(n::text, 16, '0'), CASE WHEN n % 100 = 0 THEN 'cancelled' ELSE 'done' END,"
        " :model, 1, t, t, t, t FROM generate_series(1, :jobs) AS n,"
        " LATERAL (SELECT now() - n * interval '1 s') AS ended (t)"
    ),
    sa.text(
        "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_digest, state, attempts,"
        " created_at, finished_at) SELECT id, id, 0, 1, 'payloads/' || id, repeat('0', 64),"
        " CASE WHEN state = 'cancelled' THEN 'dropped' ELSE 'done' END, 1, created_at, finished_at FROM jobs"
    ),
)


class _Undone(Exception):
    """The changes of a statement are rolled back, so that the next one finds the same."""


def measure_backlog(
    prepared: PreparedLedger, *, pending: int, finished: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Return each statement's milliseconds, with so many chunks pending and jobs finished."""
    job_id = _make_backlog(prepared, pending=pending, finished=finished)
    found = _measure(prepared.ledger, _questions(job_id), repeats)
    # Last, because small jobs are claimed first.
    _make_small_jobs(prepared)
    found |= _measure(prepared.ledger, _questions_about_small_jobs(), repeats)
    say(f"{pending:,} chunks pending, {finished:,} jobs finished:")
    for name, figures in found.items():
        say(f"{name}: {figures['median']:.2f} ms, at most {figures['most']:.2f}")
    return found


def _make_backlog(prepared: PreparedLedger, *, pending: int, finished: int) -> str:
    """Make so many pending chunks and finished jobs, and a paused job; return the id of a running job."""
    job_id = ""
    with prepared.ledger.transaction() as connection:
        values: dict[str, Any] = {"model": prepared.model_id, "size": CHUNK_IMAGES, "jobs": finished}
        for statement in _FINISHED:
            connection.execute(statement, values)
        paused = make_job(connection, prepared.model_id, chunks=_PAUSED_CHUNKS, images=CHUNK_IMAGES)
        pause_job(connection, paused)
        each = pending // _LARGE_JOBS
        for _ in range(_LARGE_JOBS):
            job_id = new_id()
            values |= {"job": job_id, "chunks": each, "images": each * CHUNK_IMAGES}
            connection.execute(_JOB, values)
            connection.execute(_CHUNKS, values)
        for _ in range(_CLAIMED):
            _claim(connection, CHUNK_IMAGES)
    _analyze(prepared)
    return job_id


def _make_small_jobs(prepared: PreparedLedger) -> None:
    with prepared.ledger.transaction() as connection:
        for _ in range(_SMALL_JOBS):
            make_job(connection, prepared.model_id, chunks=1, images=1, priority=SMALL_JOB_PRIORITY)
    _analyze(prepared)


def _analyze(prepared: PreparedLedger) -> None:
    execute(prepared.ledger, "VACUUM ANALYZE")  # autovacuum would do it sooner or later
    prepared.settle()


def _questions(job_id: str) -> dict[str, Callable[[Connection], object]]:
    return {
        "count_due": lambda connection: count_due(connection, limit=MAX_WAITING),
        "release_expired_claims": release_expired_claims,
        "drop_leftover_chunks": drop_leftover_chunks,
        "hold_leftover_chunks": hold_leftover_chunks,
        "end_stalled_sessions": end_stalled_sessions,
        "fail_abandoned_jobs": fail_abandoned_jobs,
        "forget_lost_workers": forget_lost_workers,
        "end_lost_runs": lambda connection: end_lost_runs(connection, FailureDetector()),
        "active_runs": active_runs,
        "claim_next of a chunk": lambda connection: _claim(connection, CHUNK_IMAGES),
        "claim_next of a part of a chunk": lambda connection: _claim(connection, CHUNK_IMAGES // 2),
        "job_status": lambda connection: job_status(connection, job_id),
        "latest_jobs, 20": lambda connection: latest_jobs(connection, limit=20),
        "backlog of the metrics": backlog,
    }


def _questions_about_small_jobs() -> dict[str, Callable[[Connection], object]]:
    def claim_many(connection: Connection) -> object:
        claims = _claim(connection, CHUNK_IMAGES)
        assert len(claims) == COMBINED_CLAIM_IMAGES
        return claims

    return {
        "claim_next of one small chunk": lambda connection: _claim(connection, 1),
        f"claim_next of {COMBINED_CLAIM_IMAGES} small chunks": claim_many,
    }


def _claim(connection: Connection, images: int) -> list[Claim]:
    claims = claim_next(
        connection,
        owner="benchmark",
        token=new_id(),
        lease_seconds=_LEASE_SECONDS,
        images_for=lambda _model_id: images,
    )
    assert claims
    return claims


def _measure(
    ledger: Ledger, questions: dict[str, Callable[[Connection], object]], repeats: int
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each. They take turns, so that none has a quieter machine than another."""
    taken: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(repeats):
        for name, question in questions.items():
            taken[name].append(_seconds(ledger, question))
    return {name: milliseconds(seconds) for name, seconds in taken.items()}


def _seconds(ledger: Ledger, question: Callable[[Connection], object]) -> float:
    seconds = 0.0
    with _undone(), ledger.transaction() as connection:
        began = time.perf_counter()
        question(connection)
        seconds = time.perf_counter() - began
        raise _Undone
    return seconds


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    with contextlib.suppress(_Undone):
        yield
