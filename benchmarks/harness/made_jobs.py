"""Large jobs, made by PostgreSQL itself, because row by row would take too long; and pages of their rows."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from jobs.errors import LabelmillError
from jobs.ids import new_id
from jobs.schema import ChunkState, JobState
from labelmill.client import Client

#: Rows of one page.
PAGE: Final = 100

_JOB: Final = sa.text(
    "INSERT INTO jobs (id, state, model_id, total, succeeded, created_at, touched_at, submitted_at,"
    " started_at, finished_at) VALUES (:job, :state, :model, :images, :succeeded, now(), now(), now(),"
    " now(), now() - make_interval(secs => :seconds_ago))"
)
_SMALL_JOBS: Final = sa.text(
    "INSERT INTO jobs (id, state, model_id, created_at, touched_at, submitted_at, finished_at)"
    " SELECT :begin || lpad(n::text, 8, '0'), :state, :model, at, at, at, at FROM (SELECT n,"
    " now() - make_interval(secs => :jobs - n) AS at FROM generate_series(0, :jobs - 1) AS n) AS made"
)
#: A chunk's id begins with the random part of its job's; the digits after it are in the alphabet of ids.
_CHUNKS: Final = sa.text(
    "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_digest, state, created_at)"
    " SELECT right(:job, 8) || lpad(n::text, 8, '0'), :job, n * :size, least(:size, :images - n * :size),"
    " 'payloads/' || n, repeat('0', 64), :state, now() - interval '1 hour' + n * interval '1 ms'"
    " FROM generate_series(0, :chunks - 1) AS n"
)
_PREDICTIONS: Final = sa.text(
    'INSERT INTO predictions (job_id, "index", name, label, confidence)'
    " SELECT :job, n, 'scans/' || n % 10 || '/' || lpad(n::text, 8, '0') || '.png', (n % 10)::text,"
    " 0.5 + 0.5 * random() FROM generate_series(0, :images - 1) AS n"
)


def make_finished_job(
    client: Client, model_id: str, images: int, *, days_ago: float = 0, job_id: str | None = None
) -> str:
    """Make a job that finished so many days ago, with all its rows; return its id."""
    values = {"job": job_id or new_id(), "model": model_id, "images": images, "succeeded": images}
    with client.ledger.transaction() as connection:
        job = values | {"state": JobState.DONE, "seconds_ago": days_ago * 86_400}
        connection.execute(_JOB, job)
        connection.execute(_CHUNKS, values | _chunks(client, images) | {"state": ChunkState.DONE})
        connection.execute(_PREDICTIONS, values)
    return str(values["job"])


def make_small_jobs(client: Client, model_id: str, jobs: int) -> None:
    """Make jobs of no images that have finished, created one second after the other."""
    with client.ledger.transaction() as connection:
        values = {"begin": new_id()[:8], "state": JobState.DONE, "model": model_id, "jobs": jobs}
        connection.execute(_SMALL_JOBS, values)


def make_waiting_job(client: Client, model_id: str, chunks: int) -> str:
    """Make a job of which all chunks wait for a worker; return its id."""
    images = chunks * client.settings.chunk_images
    values = {"job": new_id(), "model": model_id, "images": images, "succeeded": 0}
    with client.ledger.transaction() as connection:
        connection.execute(_JOB, values | {"state": JobState.RUNNING, "seconds_ago": None})
        connection.execute(_CHUNKS, values | _chunks(client, images) | {"state": ChunkState.PENDING})
    return str(values["job"])


def vacuum(client: Client) -> None:
    """Do what autovacuum would do sooner or later."""
    with client.ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("VACUUM ANALYZE"))


def check_page(indices: list[int], begin: int) -> None:
    """Check the indices of a page. Raises LabelmillError."""
    if indices != list(range(begin, begin + PAGE)):
        raise LabelmillError(f"The page at {begin:,} does not hold what it should.")


def _chunks(client: Client, images: int) -> dict[str, int]:
    size = client.settings.chunk_images
    return {"size": size, "chunks": -(-images // size)}
