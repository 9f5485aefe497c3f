"""Counters that only grow: the outcomes of images, attempts, jobs and training runs, and where the time went.

`labelmill metrics` reports them. A job's own counters go when it is purged; these stay. A counter is written
in the transaction that it counts, so each event counts once, and not at all if the transaction rolls back.

`count` only collects. `Ledger.transaction` writes everything in one statement, the last before the COMMIT: a
transaction that waits for a counter's row already holds all its other locks, and the rows are locked in one
order, so no deadlock is possible.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.described import DescribedEnum
from jobs.schema import counters

#: How many rows each counter has on PostgreSQL. A session adds to one of them, because all workers would
#: queue for a single row. SQLite has one writer at a time and needs one row.
SHARDS: Final = 16

#: The execution option that holds what was counted in a connection's transaction.
PENDING_COUNTS: Final = "labelmill_counts"


class CounterName(StrEnum):
    """The counters. Each comment says what is counted, and by which label."""

    IMAGES = "images"  # outcomes, by OK or error code
    ATTEMPTS = "attempts"  # claims that ended, by AttemptEnd
    JOBS = "jobs"  # finished ones, by state
    TRAINING_RUNS = "training_runs"  # finished ones, by state
    STAGE_SECONDS = "chunk_stage_seconds"  # of done chunks, by stage
    CHUNK_BUCKET = "chunk_seconds_bucket"  # done chunks, by the smallest of BUCKETS that is not exceeded
    CHUNK_SECONDS = "chunk_seconds_sum"  # of done chunks, all stages together
    WEBHOOKS = "webhook_attempts"  # by WebhookResult
    CHILD_DEATHS = "child_deaths"  # a worker's child processes that died, by one of DEATHS


#: The outcome of an image that got a label, among the error codes.
OK: Final = "ok"


class AttemptEnd(DescribedEnum):
    """How a claim on a chunk ended."""

    DONE = "done", "every image has an outcome"
    RELEASED = "released", "nobody's fault: a service was unavailable, or the worker was stopped"
    CRASHED = "crashed", "the process died, ran out of time or memory, or met an unexpected error"
    EXPIRED = "expired", "the lease expired before the worker reported back. It counts as a crash"


class WebhookResult(DescribedEnum):
    """How an attempt to send a webhook ended."""

    DELIVERED = "delivered", "the receiver answered 2xx"
    RETRIED = "retried", "it failed, and is sent again later"
    FAILED = "failed", "it failed, and is not sent again"


#: What a child process can die of: a signal, or an exit code other than 0.
DEATHS: Final = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTERM", "other")


#: Upper bounds of the time per chunk, in seconds: from a chunk of a few images to one at the usual time
#: limit.
BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: The bucket above all of them.
INFINITE: Final = "+Inf"

Counts = Mapping[tuple[CounterName, str], float]


def count(connection: Connection, counts: Counts) -> None:
    """Add these amounts to counters, by name and label, when the transaction commits.

    The connection must come from `Ledger.transaction`.
    """
    pending = connection.get_execution_options()[PENDING_COUNTS]
    for key, amount in counts.items():
        pending[key] = pending.get(key, 0.0) + amount


def write_counts(connection: Connection) -> None:
    """Write what `count` collected. `Ledger.transaction` calls this once, before the COMMIT."""
    pending = connection.get_execution_options()[PENDING_COUNTS]
    if not pending:
        return
    shard = _shard(connection)
    values: dict[str, Any] = {}
    for number, ((name, label), amount) in enumerate(sorted(pending.items())):
        values |= {f"name{number}": str(name), f"label{number}": str(label)}
        values |= {f"shard{number}": shard, f"value{number}": float(amount)}
    connection.execute(_upsert(len(pending)), values)


def totals(connection: Connection) -> dict[tuple[str, str], float]:
    """Return the sums so far, by name and label. A counter that was never written is left out."""
    query = sa.select(counters.c.name, counters.c.label, sa.func.sum(counters.c.value))
    rows = connection.execute(query.group_by(counters.c.name, counters.c.label))
    return {(name, label): value for name, label, value in rows}


def bucket_of(seconds: float) -> str:
    """Return the label of the bucket for a chunk that took this long."""
    return next((f"{bound:g}" for bound in BUCKETS if seconds <= bound), INFINITE)


@functools.cache
def _upsert(rows: int) -> sa.TextClause:
    """Return the statement that adds to this many rows.

    It is cached so that SQLAlchemy compiles it once, and its text is always the same.
    """
    values = ", ".join(f"(:name{n}, :label{n}, :shard{n}, :value{n})" for n in range(rows))
    return sa.text(
        f"INSERT INTO counters (name, label, shard, value) VALUES {values} "  # noqa: S608 -- numbers alone
        "ON CONFLICT (name, label, shard) DO UPDATE SET value = counters.value + excluded.value"
    )


def _shard(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        return 0
    # The server's process id, not ours: containers all have the same few process ids.
    driver: Any = connection.connection.driver_connection
    return int(driver.info.backend_pid) % SHARDS
