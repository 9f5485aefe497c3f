"""Workers: each worker's main process, and beat, write a heartbeat every few seconds, each in its own row.

A row says when it was last written (`seen_at`, by the database's clock) and how many child processes
were ready then. `worker.heartbeat` and `worker.schedule` write the rows; `labelmill workers`, `ready` and
`metrics` read them.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import insert_into
from jobs.schema import CHUNK_IS_IN_WORK, RunState, chunks, db_now, training_runs, workers

#: The queue in beat's row, although beat takes no messages.
BEAT: Final = "labelmill.beat"

#: How often a worker writes its heartbeat.
HEARTBEAT_SECONDS: Final = 10.0

#: A worker without a heartbeat for this long counts as gone. Two may be late, as on a very busy machine.
GONE_SECONDS: Final = 30.0

#: For this long, a worker that is gone counts as lost. If it were longer, a crash followed by a normal stop
#: would raise the alert.
LOST_SECONDS: Final = 600.0

#: The row of a worker without a heartbeat is deleted after a day; until then people can see that it existed.
FORGOTTEN_SECONDS: Final = 86_400.0


class Problem(StrEnum):
    """The kinds of problems, each with the words that its description begins with. The first match counts."""

    MEMORY = "its processes keep dying, killed for lack of memory"
    DEATHS = "its processes keep dying"
    CLOCK = "its clock is wrong"
    MODEL = "the champion"


def owner_name(pid: int) -> str:
    """Return the name under which a process of this machine claims work: host and process id."""
    return f"{socket.gethostname()}/{pid}"


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What a worker reports in its heartbeat."""

    name: str  # of its main process (`owner_name`)
    host: str
    queue: str
    children: Sequence[str]  # the names under which its ready child processes claim
    version: str  # of Labelmill
    problem: str | None = None  # what keeps it from working properly


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker, and what it is working on."""

    name: str
    host: str
    queue: str
    processes: int  # ready at the last heartbeat
    version: str
    problem: str | None  # what keeps it from working properly, if it knows
    started_at: datetime
    seen_at: datetime
    seen_seconds: float  # since the last heartbeat, by the database's clock
    chunks: tuple[str, ...]  # ids of the chunks that its processes have claimed
    run: str | None  # the id of the training run that it works on

    @property
    def alive(self) -> bool:
        """Return whether its last heartbeat is recent."""
        return self.seen_seconds <= GONE_SECONDS


def report_worker(connection: Connection, row: WorkerRow, *, up_seconds: float) -> None:
    """Write the heartbeat of a worker that started `up_seconds` ago."""
    values = {
        "host": row.host,
        "queue": row.queue,
        "processes": len(row.children),
        "children": list(row.children),
        "version": row.version,
        "problem": row.problem,
        "started_at": db_now(-up_seconds),
        "seen_at": db_now(),
    }
    connection.execute(
        insert_into(connection, workers)
        .values(name=row.name, **values)
        # Replace every column, because in a container the previous process had the same name. Leave out
        # `model_problem`, which only the children write.
        .on_conflict_do_update(index_elements=[workers.c.name], set_=values)
    )


def report_model_problem(connection: Connection, name: str, problem: str | None) -> None:
    """Write into a worker's row why its children cannot load a champion, or None if they can."""
    connection.execute(workers.update().where(workers.c.name == name).values(model_problem=problem))


def forget_worker(connection: Connection, name: str) -> None:
    """Delete the row of a worker that is stopping."""
    connection.execute(workers.delete().where(workers.c.name == name))


def forget_lost_workers(connection: Connection) -> None:
    """Delete the rows of workers without a heartbeat for a day."""
    connection.execute(workers.delete().where(workers.c.seen_at < db_now(-FORGOTTEN_SECONDS)))


def lost_workers(connection: Connection, *, seconds: float = LOST_SECONDS) -> dict[str, str]:
    """Return the workers that died or cannot reach the ledger, each with its queue.

    They have been gone for at most `seconds`.
    """
    is_lost = workers.c.seen_at.between(db_now(-GONE_SECONDS - seconds), db_now(-GONE_SECONDS))
    query = sa.select(workers.c.name, workers.c.queue).where(is_lost).order_by(workers.c.name)
    return {row.name: row.queue for row in connection.execute(query)}


def list_workers(connection: Connection, *, host: str | None = None) -> list[WorkerStatus]:
    """Return all workers with a heartbeat within a day, or those of one host, by queue, host and name."""
    query = sa.select(workers, db_now().label("now")).order_by(
        workers.c.queue, workers.c.host, workers.c.name
    )
    if host is not None:
        query = query.where(workers.c.host == host)
    claimed: dict[str, list[str]] = {}
    for owner, chunk_id in connection.execute(
        sa.select(chunks.c.owner, chunks.c.id).where(CHUNK_IS_IN_WORK).order_by(chunks.c.id)
    ):
        claimed.setdefault(owner, []).append(chunk_id)
    is_running = training_runs.c.active == 1, training_runs.c.state == RunState.RUNNING
    query_runs = sa.select(training_runs.c.owner, training_runs.c.id).where(*is_running)
    runs = {run.owner: run.id for run in connection.execute(query_runs)}  # one for each dataset
    return [
        WorkerStatus(
            name=row.name,
            host=row.host,
            queue=row.queue,
            processes=row.processes,
            version=row.version,
            problem=row.problem or row.model_problem,
            started_at=row.started_at,
            seen_at=row.seen_at,
            seen_seconds=(row.now - row.seen_at).total_seconds(),
            chunks=tuple(chunk_id for child in row.children for chunk_id in claimed.get(child, ())),
            run=next((runs[child] for child in row.children if child in runs), None),
        )
        for row in connection.execute(query).all()
    ]


#: The problem that a worker reports. Its main process's own comes first.
_PROBLEM: Final = sa.func.coalesce(workers.c.problem, workers.c.model_problem)


@dataclass(frozen=True, slots=True)
class QueueWorkers:
    """The workers of a queue that are alive."""

    workers: int = 0
    processes: int = 0
    problems: Mapping[Problem, int] = field(default_factory=dict)  # how many workers report each


def workers_by_queue(connection: Connection) -> dict[str, QueueWorkers]:
    """Return the workers that are alive, by queue."""
    alive = connection.execute(
        sa.select(workers.c.queue, workers.c.processes, _PROBLEM.label("problem")).where(
            workers.c.seen_at >= db_now(-GONE_SECONDS)
        )
    ).all()
    found = {}
    for queue in {row.queue for row in alive}:
        rows = [row for row in alive if row.queue == queue]
        problems = Counter(_kind(row.problem) for row in rows if row.problem is not None)
        found[queue] = QueueWorkers(len(rows), sum(row.processes for row in rows), problems)
    return found


def _kind(problem: str) -> Problem:
    return next((kind for kind in Problem if problem.startswith(kind)), Problem.MODEL)
