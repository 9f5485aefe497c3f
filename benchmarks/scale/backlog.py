"""What waits: how long each question to the ledger takes when very much does, and when little does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from jobs.ledger.gathering import gather_chunks, overdue_small
from jobs.ledger.waiting import who_waits
from sqlalchemy.engine import Connection

from benchmarks.report import milliseconds
from benchmarks.scale.ground import CHUNK_IMAGES, Ground, execute, make_job
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import claim_chunk
from jobs.ledger.control import hold_leftover_chunks, pause_job
from jobs.ledger.maintenance import (
    chunks_to_ring,
    count_due,
    drop_leftover_chunks,
    end_standing_sessions,
    fail_abandoned_jobs,
)
from jobs.ledger.metrics import backlog
from jobs.ledger.queries import job_status, latest_jobs
from jobs.ledger.runs import Silence, end_lost_runs, run_to_ring
from jobs.ledger.workers import forget_lost_workers
from jobs.queue import MAX_WAITING
from labelmill.console import say

#: Jobs that share what waits.
_LARGE_JOBS: Final = 10

#: Jobs of one image that wait behind all that.
_SMALL_JOBS: Final = 600

#: Of a paused job, and such as a worker is at.
_PAUSED_CHUNKS: Final = 100
_CLAIMED: Final = 16

_LEASE_SECONDS: Final = 600.0

_JOB: Final = sa.text(
    "INSERT INTO jobs (id, state, model_id, total, chunks, created_at, touched_at, submitted_at)"
    " VALUES (:job, 'running', :model, :images, :chunks, now(), now(), now())"
)
#: Rung for a while ago, as what waits for long was.
_CHUNKS: Final = sa.text(
    "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_sha256, state, created_at,"
    " rung_at, ring_after) SELECT right(:job, 8) || lpad(n::text, 8, '0'), :job, n * :size, :size,"
    " 'payloads/' || n, repeat('0', 64), 'pending', now() - interval '1 hour' + n * interval '1 ms',"
    " now() - interval '1 hour', now() - interval '1 hour' FROM generate_series(0, :chunks - 1) AS n"
)

#: Jobs of one image, of which one in a hundred was cancelled.
_FINISHED: Final = (
    sa.text(
        "INSERT INTO jobs (id, state, model_id, total, chunks, created_at, touched_at, submitted_at,"
        " finished_at) SELECT lpad(n::text, 16, '0'), CASE WHEN n % 100 = 0 THEN 'cancelled' ELSE 'done' END,"
        " :model, 1, 1, now(), now(), now(), now() FROM generate_series(1, :jobs) AS n"
    ),
    sa.text(
        "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_sha256, state, attempts,"
        " created_at, finished_at) SELECT id, id, 0, 1, 'payloads/' || id, repeat('0', 64),"
        " CASE WHEN state = 'cancelled' THEN 'dropped' ELSE 'done' END, 1, now(), now() FROM jobs"
    ),
)


class _Undone(Exception):
    """What a question has changed is taken back, so that the next one finds the same."""


def make_backlog(where: Ground, *, pending: int, finished: int) -> tuple[str, str]:
    """So many pending chunks and finished jobs, and what else a ledger holds; a large job's id, and that of a
    small chunk.
    """
    large = ""
    with where.ledger.transaction() as connection:
        values: dict[str, Any] = {"model": where.model_id, "size": CHUNK_IMAGES, "jobs": finished}
        for statement in _FINISHED:
            connection.execute(statement, values)
        paused, _ = make_job(connection, where.model_id, chunks=_PAUSED_CHUNKS, images=CHUNK_IMAGES)
        pause_job(connection, paused)
        each = pending // _LARGE_JOBS
        for _ in range(_LARGE_JOBS):
            large = new_id()
            values |= {"job": large, "chunks": each, "images": each * CHUNK_IMAGES}
            connection.execute(_JOB, values)
            connection.execute(_CHUNKS, values)
        for number in range(_CLAIMED):
            claim_chunk(connection, _chunk_of(large, number), lease_seconds=_LEASE_SECONDS, owner="benchmark")
        small = [make_job(connection, where.model_id, chunks=1, images=1)[1][0] for _ in range(_SMALL_JOBS)]
    execute(where.ledger, "VACUUM ANALYZE")  # which autovacuum would do by and by
    where.settle()
    return large, small[0]


def ask(where: Ground, *, pending: int, finished: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each question, by its name, with so many chunks pending and jobs finished."""
    large, small = make_backlog(where, pending=pending, finished=finished)
    questions = _questions(large, small, pending)
    taken: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(repeats):
        for name, question in questions.items():
            taken[name].append(_seconds(where.ledger, question))
    found = {name: milliseconds(seconds) for name, seconds in taken.items()}
    say(f"{pending:,} chunks pending, {finished:,} jobs finished:")
    for name, figures in found.items():
        say(f"{name}: {figures['median']:.2f} ms, at most {figures['most']:.2f}")
    return found


def _questions(large: str, small: str, pending: int) -> dict[str, Callable[[Connection], object]]:
    last = _chunk_of(large, pending // _LARGE_JOBS - 1)

    def claim(connection: Connection) -> object:
        return claim_chunk(connection, last, lease_seconds=_LEASE_SECONDS, owner="benchmark")

    def gather(connection: Connection) -> object:
        claimed = claim_chunk(connection, small, lease_seconds=_LEASE_SECONDS, owner="benchmark")
        assert claimed is not None
        found = gather_chunks(
            connection, claimed, images=511, lease_seconds=_LEASE_SECONDS, owner="benchmark"
        )
        assert len(found) == 511
        return found

    return {
        "count_due": lambda connection: count_due(connection, limit=MAX_WAITING),
        "chunks_to_ring, 1,000": lambda connection: chunks_to_ring(connection, limit=MAX_WAITING),
        "chunks_to_ring, 10": lambda connection: chunks_to_ring(connection, limit=10),
        "drop_leftover_chunks": drop_leftover_chunks,
        "hold_leftover_chunks": hold_leftover_chunks,
        "end_standing_sessions": end_standing_sessions,
        "fail_abandoned_jobs": fail_abandoned_jobs,
        "forget_lost_workers": forget_lost_workers,
        "end_lost_runs": lambda connection: end_lost_runs(connection, Silence()),
        "run_to_ring": run_to_ring,
        "overdue_small": overdue_small,
        "who_waits": lambda connection: who_waits(connection, seconds=0.01, after=large),
        "claim_chunk": claim,
        "claim_chunk and gather_chunks of 512": gather,
        "job_status": lambda connection: job_status(connection, large),
        "latest_jobs, 20": lambda connection: latest_jobs(connection, limit=20),
        "backlog of the metrics": backlog,
    }


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


def _chunk_of(job_id: str, number: int) -> str:
    return f"{job_id[-8:]}{number:08}"
