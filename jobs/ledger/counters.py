"""Sums that only grow: what came of images, attempts, jobs and training runs, and where the time went.

They are what `labelmill metrics` tells of the past. A job's own counters go when it is purged; these stay.
What is counted is written in the transaction in which it happens, so it counts once, like the rows it is
about, and not at all where that transaction rolls back.

`count` only notes. `Ledger.transaction` writes all that was noted in one statement, the last before the
COMMIT: whoever waits for a counter's row then holds every other lock that it needs, and takes the rows in one
order, so that nobody waits in a circle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.schema import counters

#: Each counter is so many rows on PostgreSQL, and a session adds to one of them: all workers would queue for
#: a single row. SQLite has one writer at a time, and needs one.
SHARDS: Final = 16

#: The name of the option under which a transaction's connection carries what was noted.
NOTED: Final = "labelmill_counts"


class CounterName(StrEnum):
    """What is counted, and by what."""

    IMAGES = "images"  # outcomes, by OK or the error code
    ATTEMPTS = "attempts"  # by how they ended: AttemptEnd
    JOBS = "jobs"  # that finished, by their state
    TRAINING_RUNS = "training_runs"  # that finished, by their state
    STAGE_SECONDS = "chunk_stage_seconds"  # of chunks that are done, by stage
    CHUNK_BUCKET = "chunk_seconds_bucket"  # chunks that are done, by the least of BUCKETS they fit under
    CHUNK_SECONDS = "chunk_seconds_sum"  # of chunks that are done, all of it


#: The outcome of an image that got a label, among the error codes.
OK: Final = "ok"


class AttemptEnd(StrEnum):
    """How a claim on a chunk ended."""

    DONE = "done"  # with an outcome for each of its images
    RELEASED = "released"  # interrupted, or a service was unavailable
    CRASHED = "crashed"  # its process died, took too long, or raised an error that no image explains
    EXPIRED = "expired"  # its lease ran out: a crash as well


#: Seconds a chunk took, upper bounds. From a chunk of a few images to one at the usual time limit.
BUCKETS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: What is above all of them.
INFINITE: Final = "+Inf"

Counts = Mapping[tuple[CounterName, str], float]


def count(connection: Connection, counts: Counts) -> None:
    """Adds these amounts to counters, by name and label, when the transaction commits. The connection is one
    of `Ledger.transaction`.
    """
    noted = connection.get_execution_options()[NOTED]
    for key, amount in counts.items():
        noted[key] = noted.get(key, 0.0) + amount


def write_counts(connection: Connection) -> None:
    """Writes what was noted. Called once, before the COMMIT."""
    noted = connection.get_execution_options()[NOTED]
    if not noted:
        return
    shard = _shard(connection)
    values: dict[str, Any] = {}
    for number, ((name, label), amount) in enumerate(sorted(noted.items())):
        values |= {f"name{number}": str(name), f"label{number}": str(label)}
        values |= {f"shard{number}": shard, f"value{number}": float(amount)}
    connection.execute(_upsert(len(noted)), values)


def totals(connection: Connection) -> dict[tuple[str, str], float]:
    """The sums so far, by name and label; what was never counted is not there."""
    query = sa.select(counters.c.name, counters.c.label, sa.func.sum(counters.c.value))
    rows = connection.execute(query.group_by(counters.c.name, counters.c.label))
    return {(name, label): value for name, label, value in rows}


def bucket_of(seconds: float) -> str:
    """The label of the bucket that a chunk falls into which took so long."""
    return next((f"{bound:g}" for bound in BUCKETS if seconds <= bound), INFINITE)


@functools.cache
def _upsert(rows: int) -> sa.TextClause:
    """Adds to so many rows, in one statement of which the databases need not be told twice."""
    values = ", ".join(f"(:name{n}, :label{n}, :shard{n}, :value{n})" for n in range(rows))
    return sa.text(
        f"INSERT INTO counters (name, label, shard, value) VALUES {values} "  # noqa: S608 -- numbers alone
        "ON CONFLICT (name, label, shard) DO UPDATE SET value = counters.value + excluded.value"
    )


def _shard(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        return 0
    # The server's number of the session, not our process's: in containers all workers have the same few.
    driver: Any = connection.connection.driver_connection
    return int(driver.info.backend_pid) % SHARDS
