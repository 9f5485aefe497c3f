"""Who waits for a process, asked by one that is in the middle of a large chunk."""

from __future__ import annotations

from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.claims import CHUNK_IS_OPEN, chunk_is_in_work
from jobs.ledger.gathering import FIRST_SMALL
from jobs.ledger.workers import classifying_processes
from jobs.schema import ChunkState, JobState, chunks, db_now, jobs


class Waiting(NamedTuple):
    """Who is better served now than when the chunk is done."""

    #: The chunk of a small job that has waited longest to be gathered, if that is too long: no process is
    #: free to take it.
    small: str | None
    #: A process that classifies has nothing to do.
    somebody_idle: bool


NOBODY: Final = Waiting(None, somebody_idle=False)

# Built once, and asked in one statement: it is asked in the middle of work, for which it is waited.
_NEGLECTED: Final = FIRST_SMALL.where(chunks.c.created_at < db_now("since")).scalar_subquery()

# The oldest, not any: in that order there is an index, while for any PostgreSQL may look through all chunks
# there ever were, where it has not learnt yet that none waits any more.
_NEVER_TRIED: Final = (
    sa.select(chunks.c.id)
    .where(CHUNK_IS_OPEN, chunks.c.state == ChunkState.PENDING, chunks.c.attempts == 0)
    .order_by(chunks.c.created_at)
    .limit(1)
    .scalar_subquery()
)

# In this order, as what waits is found at once.
_SOMEBODY_IDLE: Final = sa.and_(
    sa.exists().where(jobs.c.id == sa.bindparam("of_job"), jobs.c.state == JobState.RUNNING),
    _NEVER_TRIED.is_(None),
    classifying_processes()
    > sa.select(sa.func.count(chunks.c.owner.distinct())).where(chunk_is_in_work()).scalar_subquery(),
)
_SMALL: Final = sa.select(_NEGLECTED)
_BOTH: Final = sa.select(_NEGLECTED, _SOMEBODY_IDLE)


def who_waits(connection: Connection, *, seconds: float, after: str | None) -> Waiting:
    """The small chunk that has waited for longer than so many seconds; and whether a process has nothing to
    do after this job: it is submitted as a whole, no chunk waits that was never tried, and there are more
    processes than hold chunks. One that died lately may be counted. That is not asked where no job is named.
    Only looks.
    """
    if after is None:
        return Waiting(connection.scalar(_SMALL, {"since": -seconds}), somebody_idle=False)
    small, idle = connection.execute(_BOTH, {"since": -seconds, "of_job": after}).one()
    return Waiting(small, bool(idle))
