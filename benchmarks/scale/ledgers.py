"""Ledgers with a model that is only a row, their jobs, and PostgreSQL's figures of bytes and of its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.databases import Databases
from jobs import schema
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.submission import DEFAULT_PRIORITY, NewChunk, add_chunk, open_job, seal_job
from jobs.ledger.learning.models import CHAMPION, add_model, point_alias
from jobs.models.model import MNIST_INPUT
from jobs.settings import Settings
from jobs.storage.payloads import payload_key

#: Images of a chunk by default.
CHUNK_IMAGES: Final[int] = Settings.model_fields["chunk_images"].default


@dataclass(frozen=True)
class PreparedLedger:
    """A migrated ledger with a champion that has no file."""

    ledger: Ledger
    model_id: str
    settle: Callable[[], None]  # writes all to the disk, so that the next measurement does not wait for it


@contextlib.contextmanager
def prepared_ledger(both: Databases, url: str) -> Iterator[PreparedLedger]:
    """Open one of the two databases, and add a champion."""
    with contextlib.closing(Ledger(url)) as ledger:
        with ledger.transaction() as connection:
            model_id = add_model(
                connection,
                model_id=new_id(),
                architecture="none",
                sha256="0" * 64,
                size_bytes=0,
                classes=tuple("0123456789"),
                input_spec=MNIST_INPUT,
                accuracy=None,
                metrics={},
            )
            point_alias(connection, CHAMPION, model_id)
        yield PreparedLedger(ledger, model_id, both.settle)


def image_name(index: int) -> str:
    """As long as the names that `labelmill submit scans/` makes of a folder of ten."""
    return f"scans/{index % 10}/{index:08}.png"


def make_job(
    connection: Connection, model_id: str, *, chunks: int, images: int, priority: int = DEFAULT_PRIORITY
) -> str:
    """Make a job of so many chunks with so many images each, and return its id."""
    job_id = new_id()
    open_job(connection, job_id, model_id=model_id, key=None)
    for number in range(chunks):
        chunk_id = new_id()
        key = payload_key(job_id, chunk_id)
        add_chunk(connection, job_id, NewChunk(chunk_id, number * images, images, key, "0" * 64, priority))
    seal_job(connection, job_id, fingerprint=None)
    return job_id


def make_jobs(connection: Connection, model_id: str, *, jobs: int, chunks: int, images: int) -> None:
    """Make so many jobs, of so many chunks each, whose chunks are claimed in turn."""
    ids = [make_job(connection, model_id, chunks=chunks, images=images) for _ in range(jobs)]
    # Of one age, they are claimed by their first index.
    connection.execute(
        schema.chunks.update().where(schema.chunks.c.job_id.in_(ids)).values(created_at=sa.func.now())
    )


def execute(ledger: Ledger, statement: str) -> None:
    """Execute a statement that cannot run in a transaction, or is not one of the ledger's."""
    with ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)


def sizes(ledger: Ledger) -> dict[str, float]:
    """Return the bytes per row of the predictions, in the table and in its primary key's index."""
    with ledger.reading() as connection:
        rows, table, index = connection.execute(
            sa.text(
                "SELECT (SELECT count(*) FROM predictions), sum(pg_table_size(relid)),"
                " sum(pg_indexes_size(relid))"
                " FROM pg_partition_tree('predictions')"
            )
        ).one()
    return {"rows": rows, "table": round(int(table) / rows, 2), "primary_key": round(int(index) / rows, 2)}


@contextlib.contextmanager
def noting(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Put into a dictionary how many seconds the body took, and how many bytes of the write-ahead log."""
    found: dict[str, Any] = {}
    before, began = _log_position(ledger), time.perf_counter()
    yield found
    found["seconds"] = round(time.perf_counter() - began, 3)
    found["wal_bytes"] = _log_position(ledger) - before


def _log_position(ledger: Ledger) -> int:
    with ledger.reading() as connection:
        position = connection.scalar(sa.text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))
    return int(position or 0)
