"""Workers: the main process of each writes a heartbeat, its own row, again and again.

A row says that ledger and broker answered and how many child processes were ready, at the moment in
`seen_at`, by the database's clock. `worker.heartbeat` writes them; `labelmill workers`, `ready` and `metrics`
read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import chunk_is_in_work
from jobs.ledger.database import insert_into
from jobs.messages import RETRAIN_QUEUE
from jobs.schema import RunState, chunks, db_now, training_runs, workers

#: How often a worker writes its heartbeat.
HEARTBEAT_SECONDS: Final = 10.0

#: Without one for so long, a worker counts as gone: two may be late, as on a machine that is very busy.
GONE_SECONDS: Final = 30.0

#: It is forgotten after a day: until then people can see that there was one.
FORGOTTEN_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What a worker says of itself."""

    name: str  # of its main process (`worker.context.owner_name`)
    host: str
    queue: str
    children: Sequence[str]  # the names under which its ready child processes claim
    version: str  # of Labelmill


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker, and what it is at."""

    name: str
    host: str
    queue: str
    processes: int  # that were ready when it was last seen
    version: str
    started_at: datetime
    seen_at: datetime
    seen_seconds: float  # ago, by the database's clock
    chunks: tuple[str, ...]  # ids of those that its processes have claimed
    run: str | None  # the id of the training run that it is at

    @property
    def alive(self) -> bool:
        """Whether it was seen lately."""
        return self.seen_seconds <= GONE_SECONDS


def report_worker(connection: Connection, row: WorkerRow, *, up_seconds: float) -> None:
    """Write a heartbeat of a worker that was started so many seconds ago."""
    values = {
        "host": row.host,
        "queue": row.queue,
        "processes": len(row.children),
        "children": list(row.children),
        "version": row.version,
        "started_at": db_now(-up_seconds),
        "seen_at": db_now(),
    }
    connection.execute(
        insert_into(connection, workers)
        .values(name=row.name, **values)
        # All of it: in a container the process before had the same name.
        .on_conflict_do_update(index_elements=[workers.c.name], set_=values)
    )


def forget_worker(connection: Connection, name: str) -> None:
    """Delete the row of a worker that stops."""
    connection.execute(workers.delete().where(workers.c.name == name))


def forget_lost_workers(connection: Connection) -> None:
    """Delete the rows of workers without a heartbeat for a day."""
    connection.execute(workers.delete().where(workers.c.seen_at < db_now(-FORGOTTEN_SECONDS)))


def list_workers(connection: Connection, *, host: str | None = None) -> list[WorkerStatus]:
    """Return all workers with a heartbeat within a day, or those of one host; by queue, host and name."""
    query = sa.select(workers, db_now().label("now")).order_by(
        workers.c.queue, workers.c.host, workers.c.name
    )
    if host is not None:
        query = query.where(workers.c.host == host)
    rows = connection.execute(query).all()
    if not rows:
        return []
    claimed: dict[str, list[str]] = {}
    for owner, chunk_id in connection.execute(
        sa.select(chunks.c.owner, chunks.c.id).where(chunk_is_in_work()).order_by(chunks.c.id)
    ):
        claimed.setdefault(owner, []).append(chunk_id)
    active = connection.execute(
        sa.select(training_runs.c.id, training_runs.c.owner).where(
            training_runs.c.active == 1, training_runs.c.state == RunState.RUNNING
        )
    ).one_or_none()
    return [
        WorkerStatus(
            name=row.name,
            host=row.host,
            queue=row.queue,
            processes=row.processes,
            version=row.version,
            started_at=row.started_at,
            seen_at=row.seen_at,
            seen_seconds=(row.now - row.seen_at).total_seconds(),
            chunks=tuple(chunk_id for child in row.children for chunk_id in claimed.get(child, ())),
            run=active.id if active is not None and active.owner in row.children else None,
        )
        for row in rows
    ]


def _is_alive() -> sa.ColumnElement[bool]:
    """Return the condition for a row that was written lately. That of a killed worker stays for a day."""
    return workers.c.seen_at >= db_now(-GONE_SECONDS)


def trainer_is_there(connection: Connection) -> bool:
    """Whether anybody would take a training run that waits."""
    return RETRAIN_QUEUE in workers_by_queue(connection)


def workers_by_queue(connection: Connection) -> dict[str, tuple[int, int]]:
    """How many workers are there, and how many processes of theirs have started, by queue."""
    rows = connection.execute(
        sa.select(workers.c.queue, sa.func.count(), sa.func.sum(workers.c.processes))
        .where(_is_alive())
        .group_by(workers.c.queue)
    )
    return {queue: (int(number), int(processes)) for queue, number, processes in rows}
