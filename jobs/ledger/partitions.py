"""The partitions of `predictions` on PostgreSQL: one for each week, by the time in their job's id.

When all jobs of a week are purged, their predictions are removed at once, and nothing is left to vacuum. On
SQLite there are no partitions.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import first_id, id_seconds
from jobs.schema import FINISHED, db_now, jobs

_DAY_SECONDS: Final = 86_400.0
WEEK_SECONDS: Final = 7 * 86_400

#: `labelmill db upgrade` adds partitions for this many weeks. Later predictions go to the default partition,
#: which a purge cannot empty at once.
_WEEKS_AHEAD: Final = 53

#: It adds none while so many weeks have theirs: an upgrade need not wait for those who read all partitions.
_WEEKS_LEFT: Final = 26

#: If there are rows without a partition, the next one begins this many weeks from now: until then, new rows
#: still go to their table. If an upgrade is killed, it must be run again within this time.
_WEEKS_OF_UPGRADE: Final = 5

#: How long rows may outlive their purged job, until the last job of their week can be purged.
SOON_DAYS: Final = 14.0

#: How long emptying a partition waits for its readers. New readers wait behind it.
_LOCK_TIMEOUT: Final = "2s"


class Partition(NamedTuple):
    """The predictions of the jobs whose ids lie in a range."""

    name: str
    first: str  # the lowest id
    beyond: str  # the next partition's lowest id
    can_be_emptied: bool  # it has rows, and this user may remove all

    def holds(self, job_id: str) -> bool:
        """Return whether the job's predictions are in this partition."""
        return self.first <= job_id < self.beyond


#: All but the default partition. Only the first has no lowest id.
_PARTITIONS: Final = sa.text(r"""
    SELECT relname, coalesce(substring(bounds from 'FROM \(''(\w+)''\)'), ''),
        substring(bounds from 'TO \(''(\w+)''\)'),
        pg_relation_size(pg_class.oid) > 0 AND has_table_privilege(pg_class.oid, 'TRUNCATE')
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid,
        pg_get_expr(relpartbound, pg_class.oid) AS bounds
    WHERE inhparent = to_regclass('predictions') AND bounds <> 'DEFAULT'
    ORDER BY 3
""")


def partitions(connection: Connection) -> list[Partition]:
    """Return the partitions, the earliest first, without the default partition."""
    if connection.dialect.name != "postgresql":
        return []
    return [Partition(*row) for row in connection.execute(_PARTITIONS)]


def partitions_end(connection: Connection) -> float | None:
    """Return when the last partition ends, in seconds since 1970, or None if there are none."""
    found = partitions(connection)
    return id_seconds(found[-1].beyond) if found else None


def first_free_week(latest: str | None) -> int:
    """Return the week, counted from 1970, with which the next partition can begin.

    `latest` is the highest job id of the rows that are in no partition, or None if there are no such rows.
    """
    this_week = int(time.time() // WEEK_SECONDS)
    if latest is None:
        return this_week
    # The job may be later than now, because its producer's clock was wrong.
    return max(this_week + _WEEKS_OF_UPGRADE, int(id_seconds(latest) // WEEK_SECONDS) + 1)


def weeks_due(connection: Connection) -> range:
    """Return the weeks, counted from 1970, that need a partition.

    Weeks of which the default partition has rows are left out: PostgreSQL would refuse their partitions.
    """
    end = partitions_end(connection)
    this_week = int(time.time() // WEEK_SECONDS)
    if end is None or end > (this_week + _WEEKS_LEFT) * WEEK_SECONDS:
        return range(0)
    stop = this_week + _WEEKS_AHEAD
    # If a producer's wrong clock has made a later job, the weeks before it never get a partition.
    latest = connection.scalar(
        sa.text("SELECT max(job_id) FROM predictions_default WHERE job_id < :stop"),
        {"stop": first_id(stop * WEEK_SECONDS)},
    )
    if latest is None and connection.scalar(sa.text("SELECT EXISTS (SELECT FROM predictions_default)")):
        # Still later rows: those of now may come while the constraint is in place (`migrations.bounding`).
        latest = first_id(this_week * WEEK_SECONDS)
    return range(max(round(end / WEEK_SECONDS), first_free_week(latest)), stop)


def add_partitions(connection: Connection) -> None:
    """Add the partitions that are missing for the next year. Only the owner of the table can do this.

    Only readers and writers of the default partition wait: for a moment if a constraint says that it has no
    rows of these weeks (`migrations.bounding`), otherwise until PostgreSQL has read its rows.
    """
    for week in weeks_due(connection):
        seconds = week * WEEK_SECONDS
        name = f"predictions_{time.strftime('%Y_%m_%d', time.gmtime(seconds))}"
        # Not CREATE TABLE ... PARTITION OF, which would lock the whole table.
        connection.execute(sa.text(f"CREATE TABLE {name} (LIKE predictions INCLUDING ALL)"))
        bounds = f"FROM ('{first_id(seconds)}') TO ('{first_id(seconds + WEEK_SECONDS)}')"
        connection.execute(sa.text(f"ALTER TABLE predictions ATTACH PARTITION {name} FOR VALUES {bounds}"))


def partitions_to_leave(connection: Connection, *, days: float) -> list[Partition]:
    """Return the partitions whose rows a purge of jobs older than `days` days need not delete one by one.

    All their jobs have finished and will be old enough within `SOON_DAYS`.
    """
    late = sa.or_(
        jobs.c.state.not_in(FINISHED), jobs.c.finished_at > db_now((SOON_DAYS - days) * _DAY_SECONDS)
    )
    found = [each for each in partitions(connection) if each.can_be_emptied]
    return [each for each in found if not _has_job(connection, each, late)]


def partitions_to_empty(connection: Connection) -> list[Partition]:
    """Return the partitions that have rows, but no job any more."""
    return [each for each in partitions(connection) if each.can_be_emptied and not _has_job(connection, each)]


def empty_partition(connection: Connection, partition: Partition) -> None:
    """Remove all rows of a partition, unless it has a job again. Raises Unavailable if it stays locked."""
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    # Lock first: then each job with predictions here has committed its row in `jobs`, and the check sees it.
    connection.execute(sa.text(f"LOCK TABLE {partition.name} IN ACCESS EXCLUSIVE MODE"))
    if not _has_job(connection, partition):
        connection.execute(sa.text(f"TRUNCATE {partition.name}"))


def _has_job(connection: Connection, partition: Partition, *conditions: sa.ColumnElement[bool]) -> bool:
    ids = jobs.c.id
    found = sa.select(ids).where(ids >= partition.first, ids < partition.beyond, *conditions)
    return connection.scalar(found.limit(1)) is not None
