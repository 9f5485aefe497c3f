"""A large finished job, made by PostgreSQL itself: row by row would take too long."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.schema import ChunkState, JobState

_JOB: Final = sa.text(
    "INSERT INTO jobs (id, state, model_id, total, succeeded, failed, created_at,"
    " touched_at, submitted_at, started_at, finished_at) VALUES (:job, :done, :model, :images, :images, 0,"
    " now(), now(), now(), now(), now() - make_interval(secs => :seconds))"
)
#: A chunk's id begins with the random part of its job's; the digits after it are in the alphabet of ids.
_CHUNKS: Final = sa.text(
    "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_digest, state, attempts,"
    " created_at, finished_at) SELECT right(:job, 8) || lpad(n::text, 8, '0'), :job, n * :size,"
    " least(:size, :images - n * :size), 'payloads/' || n, repeat('0', 64), :done, 1, now(), now()"
    " FROM generate_series(0, :chunks - 1) AS n"
)
_PREDICTIONS: Final = (
    ' (job_id, "index", name, label, confidence)'
    " SELECT :job, n, 'scans/' || n % 10 || '/' || lpad(n::text, 8, '0') || '.png', (n % 10)::text,"
    " 0.5 + 0.5 * random() FROM generate_series(0, :images - 1) AS n"
)


def make_large_job(
    connection: Connection,
    model_id: str,
    images: int,
    *,
    chunk_images: int,
    days_ago: float = 0,
    job_id: str | None = None,
) -> str:
    """Make a job that finished so many days ago, with all its rows; return its id."""
    values = {
        "job": job_id or new_id(),
        "model": model_id,
        "images": images,
        "size": chunk_images,
        "chunks": -(-images // chunk_images),
    }
    connection.execute(_JOB, values | {"done": JobState.DONE, "seconds": days_ago * 86_400})
    connection.execute(_CHUNKS, values | {"done": ChunkState.DONE})
    fill_predictions(connection, str(values["job"]), images)
    return str(values["job"])


def fill_predictions(connection: Connection, job_id: str, images: int, *, table: str = "predictions") -> None:
    """Insert so many predictions of a job into this table, or one of its shape."""
    connection.execute(sa.text(f"INSERT INTO {table}{_PREDICTIONS}"), {"job": job_id, "images": images})
