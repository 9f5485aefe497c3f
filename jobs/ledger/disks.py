"""Disks: the free space of the ledger's and the store's disk, as last reported.

The exporter sees neither the store nor a database server's disk. Workers and trainers report the store's disk
if it is a folder, and all workers report the ledger's disk if it is a file. The database server's machine can
report the ledger's disk with one SQL statement (docs/reference/metrics.md).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from os import PathLike
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import insert_into
from jobs.schema import db_now, disks

#: A report older than this is not shown.
STALE_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of the ledger or of the store."""

    name: str
    free_bytes: int
    total_bytes: int


def read_disk(name: str, path: str | PathLike[str]) -> Disk:
    """Return the free space of the disk on which this path is. Raises OSError."""
    usage = shutil.disk_usage(path)
    return Disk(name, free_bytes=usage.free, total_bytes=usage.total)


def report_disk(connection: Connection, disk: Disk) -> None:
    """Replace the latest report of this disk."""
    values = {"free_bytes": disk.free_bytes, "total_bytes": disk.total_bytes, "seen_at": db_now()}
    connection.execute(
        insert_into(connection, disks)
        .values(name=disk.name, **values)
        .on_conflict_do_update(index_elements=[disks.c.name], set_=values)
    )


def list_disks(connection: Connection) -> list[Disk]:
    """Return the disks with a recent report, by name."""
    query = sa.select(disks.c.name, disks.c.free_bytes, disks.c.total_bytes).order_by(disks.c.name)
    rows = connection.execute(query.where(disks.c.seen_at >= db_now(-STALE_SECONDS)))
    return [Disk(*row) for row in rows]
